// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: the users of the device, swap areas and a
 * swap disk, each with a persistent pool.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/moduleparam.h>
#include <linux/sysfs.h>
#include <linux/virtio_config.h>

#include "tmem.h"

static bool tmem_frontswap = true;
module_param_named(frontswap, tmem_frontswap, bool, 0444);
MODULE_PARM_DESC(frontswap, "Store pages of swap areas (on by default)");

/* Negative: the size that the host suggests */
static s64 tmem_swap_bytes = -1;

static int tmem_swap_set(const char *val, const struct kernel_param *kp)
{
	char *end;
	u64 bytes = memparse(val, &end);

	if (end == val || (*end && *end != '\n') || bytes > S64_MAX)
		return -EINVAL;
	tmem_swap_bytes = bytes;
	return 0;
}

static int tmem_swap_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%lld\n", tmem_swap_bytes);
}

static const struct kernel_param_ops tmem_swap_ops = {
	.set = tmem_swap_set,
	.get = tmem_swap_get,
};
module_param_cb(swap, &tmem_swap_ops, NULL, 0444);
MODULE_PARM_DESC(swap, "Size of the swap disk, 0 for none (default: what the host suggests)");

static void tmem_start_frontswap(struct tmem_dev *dev)
{
	struct device *d = &dev->vdev->dev;

	if (!tmem_frontswap || !IS_ENABLED(CONFIG_TMEM_FRONTSWAP))
		return;
	/* A backend that cannot store anything must not hold the slot */
	if (tmem_create_pool(dev, TMEM_USER_FRONTSWAP)) {
		dev_warn(d, "no pool for frontswap\n");
		return;
	}
	if (tmem_frontswap_attach(dev)) {
		dev_warn(d, "frontswap has a backend already\n");
		tmem_destroy_pool(dev, TMEM_USER_FRONTSWAP);
		return;
	}
	dev->has_user[TMEM_USER_FRONTSWAP] = true;
	dev_info(d, "swap areas go to the host\n");
}

static void tmem_start_block(struct tmem_dev *dev)
{
	struct device *d = &dev->vdev->dev;
	u64 bytes;
	int err;

	if (tmem_swap_bytes >= 0)
		bytes = tmem_swap_bytes;
	else
		virtio_cread_le(dev->vdev, struct virtio_tmem_config,
				swap_bytes, &bytes);
	if (bytes < PAGE_SIZE)
		return;
	if (tmem_create_pool(dev, TMEM_USER_BLOCK)) {
		dev_warn(d, "no pool for a swap disk\n");
		return;
	}
	err = tmem_block_attach(dev, bytes);
	if (err) {
		dev_warn(d, "no swap disk of %llu bytes: error %d\n", bytes,
			 err);
		tmem_destroy_pool(dev, TMEM_USER_BLOCK);
		return;
	}
	dev->has_user[TMEM_USER_BLOCK] = true;
	dev_info(d, "swap disk of %llu KiB\n", bytes >> 10);
}

/* The users that need a pool and have none yet. */
void tmem_start_users(struct tmem_dev *dev)
{
	if (!dev->has_user[TMEM_USER_FRONTSWAP])
		tmem_start_frontswap(dev);
	if (!dev->has_user[TMEM_USER_BLOCK])
		tmem_start_block(dev);
}
