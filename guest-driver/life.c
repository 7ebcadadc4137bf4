// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: reviving a device.
 *
 * After a device was given up, the driver tries to use it again, with empty
 * pools.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/virtio_config.h>

#include "tmem.h"

/**
 * tmem_shut() - have no device
 * @dev: device
 *
 * The device is quiet afterwards, and has no virtqueues. Its state stays.
 */
void tmem_shut(struct tmem_dev *dev)
{
	tmem_quiesce(dev);
	tmem_close(dev);
}

/* Whether the queues that are in use have the same roles at the device. */
static bool tmem_has_queues(struct tmem_dev *dev,
			    const struct tmem_config *config)
{
	unsigned int stores = dev->config.nr_store_queues;

	if (!stores)
		return config->nr_queues >= dev->config.nr_queues;
	return config->nr_store_queues == stores &&
	       config->nr_queues == dev->config.nr_queues;
}

/* The device is reset: negotiate the features that it had. */
static int tmem_negotiate(struct tmem_dev *dev)
{
	struct virtio_device *vdev = dev->vdev;
	struct tmem_config config;
	int err;

	if (vdev->features & ~vdev->config->get_features(vdev))
		return -ENODEV;
	virtio_add_status(vdev, VIRTIO_CONFIG_S_ACKNOWLEDGE);
	virtio_add_status(vdev, VIRTIO_CONFIG_S_DRIVER);
	err = vdev->config->finalize_features(vdev);
	if (err)
		return err;
	virtio_add_status(vdev, VIRTIO_CONFIG_S_FEATURES_OK);
	if (!(vdev->config->get_status(vdev) & VIRTIO_CONFIG_S_FEATURES_OK))
		return -ENODEV;
	tmem_read_config(vdev, &config);
	if (config.page_size != PAGE_SIZE ||
	    !tmem_has_queues(dev, &config) ||
	    config.max_batch < dev->max_batch) {
		dev_warn_once(&vdev->dev,
			      "it came back with less than it had: unbind and bind the driver\n");
		return -ENODEV;
	}
	return 0;
}

static int tmem_revive(struct tmem_dev *dev)
{
	int err;

	tmem_shut(dev);
	err = tmem_areas_lose(dev);
	if (err)
		return err;
	err = tmem_negotiate(dev);
	if (err)
		return err;
	err = tmem_open(dev);
	if (err)
		return err;
	err = tmem_create_pools(dev);
	if (err)
		return err;
	if (!tmem_run(dev))
		return -EIO;
	tmem_count(TMEM_REVIVED);
	/* What is staged was not lost */
	tmem_flush_later(dev, 0);
	dev_info(&dev->vdev->dev, "the device is back, and takes new pages\n");
	tmem_start_users(dev);
	return 0;
}

/* The work of tmem_dev.revive_work */
void tmem_revive_work(struct work_struct *work)
{
	struct tmem_dev *dev = container_of(to_delayed_work(work),
					    struct tmem_dev, revive_work);

	mutex_lock(&dev->life_lock);
	if (READ_ONCE(dev->state) == TMEM_DEAD && !READ_ONCE(dev->leaving) &&
	    tmem_revive(dev))
		tmem_retry(dev);
	mutex_unlock(&dev->life_lock);
}
