// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: frontswap backend.
 *
 * The frontswap code keeps a map of the pages which the backend has, and asks
 * for no other. A page which it has was not written to the swap device: when
 * it cannot be had, -EIO tells swap_readpage() not to read the device instead.
 * 1 tells it that the page is loaded and unlocked later, with others.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/frontswap.h>
#include <linux/swap.h>
#include <linux/swapfile.h>

#include "tmem.h"

/* Taken in swapon, so before the lock of the device */
static DEFINE_MUTEX(tmem_frontswap_lock);
/* The device for new swap areas; protected by the lock */
static struct tmem_dev *tmem_frontswap_dev;
/* The backend cannot be unregistered */
static bool tmem_frontswap_registered;

/*
 * Set in swapon, before the first page, and cleared in swapoff, after the
 * last; the swap code orders that.
 */
static struct tmem_area *tmem_frontswap_areas[MAX_SWAPFILES];

static void tmem_frontswap_invalidate_area(unsigned int type)
{
	struct tmem_area *area = tmem_frontswap_areas[type];

	if (!area)
		return;
	tmem_frontswap_areas[type] = NULL;
	tmem_area_destroy(area);
}

static void tmem_frontswap_init(unsigned int type)
{
	unsigned long nr_pages = swap_info[type]->max;

	tmem_frontswap_invalidate_area(type);
	mutex_lock(&tmem_frontswap_lock);
	if (tmem_frontswap_dev) {
		tmem_frontswap_areas[type] =
			tmem_area_create(tmem_frontswap_dev,
					 TMEM_USER_FRONTSWAP, type, nr_pages);
		if (!tmem_frontswap_areas[type])
			pr_warn("no memory for swap area %u, it stays without\n",
				type);
	}
	mutex_unlock(&tmem_frontswap_lock);
}

static int tmem_frontswap_store(unsigned int type, pgoff_t offset,
				struct page *page)
{
	struct tmem_area *area = tmem_frontswap_areas[type];

	if (!area || PageTransHuge(page))
		return -EINVAL;
	return tmem_store(area, offset, page);
}

static int tmem_frontswap_load(unsigned int type, pgoff_t offset,
			       struct page *page)
{
	struct tmem_area *area = tmem_frontswap_areas[type];

	if (!area)
		return -EIO;
	if (tmem_plug_load(area, offset, page))
		return 1;
	return tmem_load(area, offset, page) ? -EIO : 0;
}

static void tmem_frontswap_invalidate_page(unsigned int type, pgoff_t offset)
{
	struct tmem_area *area = tmem_frontswap_areas[type];

	if (area)
		tmem_invalidate(area, offset);
}

static const struct frontswap_ops tmem_frontswap_ops = {
	.init = tmem_frontswap_init,
	.store = tmem_frontswap_store,
	.load = tmem_frontswap_load,
	.invalidate_page = tmem_frontswap_invalidate_page,
	.invalidate_area = tmem_frontswap_invalidate_area,
};

/**
 * tmem_frontswap_attach() - use a device for swap areas from now on
 * @dev: device with a pool for it
 *
 * Takes the one slot for a backend, in the initcalls of devices: zswap comes
 * later and finds it taken.
 *
 * Return: 0, or -EBUSY when there is another device or another backend.
 */
int tmem_frontswap_attach(struct tmem_dev *dev)
{
	int err = 0;

	mutex_lock(&tmem_frontswap_lock);
	if (tmem_frontswap_dev) {
		err = -EBUSY;
	} else if (!tmem_frontswap_registered) {
		tmem_plug_init();
		err = frontswap_register_ops(&tmem_frontswap_ops) ? -EBUSY : 0;
		tmem_frontswap_registered = !err;
	}
	if (!err)
		tmem_frontswap_dev = dev;
	mutex_unlock(&tmem_frontswap_lock);
	return err;
}

void tmem_frontswap_detach(struct tmem_dev *dev)
{
	mutex_lock(&tmem_frontswap_lock);
	if (tmem_frontswap_dev == dev)
		tmem_frontswap_dev = NULL;
	mutex_unlock(&tmem_frontswap_lock);
}
