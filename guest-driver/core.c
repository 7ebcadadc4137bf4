// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: the driver as virtio sees it.
 *
 * With tmem=1 the driver makes a persistent pool for swap areas and one for a
 * swap disk of its own. Without, it does not even register.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#include "plug.h"
#include "tmem.h"

/* More queues than this only cost memory */
#define TMEM_MAX_QUEUES		64
/* Staging pages of a queue: most, and those by default */
#define TMEM_STAGE_MAX		4096
#define TMEM_STAGE_SMALL	64UL
#define TMEM_STAGE_BIG		128UL

static bool tmem_enable;
#ifdef MODULE
module_param_named(enable, tmem_enable, bool, 0444);
MODULE_PARM_DESC(enable, "Use the device (off by default)");
#else
core_param(tmem, tmem_enable, bool, 0444);
#endif

static int tmem_stage = -1;
module_param_named(stage, tmem_stage, int, 0444);
MODULE_PARM_DESC(stage, "Staging pages of a queue, 0 for none (default: by size of memory)");

/* At most 1/128 of the memory for all queues together */
static unsigned int tmem_stage_size(unsigned int nr_queues)
{
	unsigned long pages = totalram_pages();

	if (tmem_stage >= 0)
		return min(tmem_stage, TMEM_STAGE_MAX);
	return min(clamp_t(unsigned long, pages / 1024, TMEM_STAGE_SMALL,
			   TMEM_STAGE_BIG),
		   pages / 128 / nr_queues);
}

static int tmem_validate(struct virtio_device *vdev)
{
	if (!vdev->config->get) {
		dev_err(&vdev->dev, "no configuration space\n");
		return -EINVAL;
	}
	if (!virtio_has_feature(vdev, VIRTIO_F_VERSION_1)) {
		dev_err(&vdev->dev, "legacy device\n");
		return -EINVAL;
	}
	/* A table of indirect descriptors is allocated for each request */
	__virtio_clear_bit(vdev, VIRTIO_RING_F_INDIRECT_DESC);
	/*
	 * An event index can only say "not soon"; the flag of the available
	 * ring can say "no interrupt".
	 */
	__virtio_clear_bit(vdev, VIRTIO_RING_F_EVENT_IDX);
	return 0;
}

static void tmem_free_dev(struct tmem_dev *dev)
{
	unsigned int i;

	if (dev->send_wq)
		destroy_workqueue(dev->send_wq);
	if (dev->wq)
		destroy_workqueue(dev->wq);
	if (dev->queues) {
		for (i = 0; i < dev->nr_rings; i++) {
			tmem_queue_free(&dev->queues[i]);
			tmem_stage_free(&dev->queues[i].stage);
		}
	}
	kfree(dev->queues);
	kfree(dev->events);
	kfree(dev);
}

/* Queues of which the numbers and roles are set */
static int tmem_init_queues(struct tmem_dev *dev)
{
	unsigned int i, loads = dev->nr_rings - dev->nr_queues;
	unsigned int others = dev->config.nr_queues -
			      dev->config.nr_store_queues;
	unsigned int stage = tmem_stage_size(dev->nr_queues);
	struct tmem_queue *q;
	int err;

	for (i = 0; i < dev->nr_rings; i++)
		INIT_LIST_HEAD(&dev->queues[i].stage.free);
	for (i = 0; i < dev->nr_rings; i++) {
		q = &dev->queues[i];
		err = tmem_queue_init(q, dev, i);
		if (err)
			return err;
		INIT_WORK(&q->send_work, tmem_send_work);
		q->vq_index = VIRTIO_TMEM_FIRST_REQUEST_QUEUE + i;
		q->loads = q;
		if (loads && i < dev->nr_queues) {
			q->vq_index += others;
			q->loads = &dev->queues[dev->nr_queues + i % loads];
		} else if (loads) {
			q->vq_index -= dev->nr_queues;
		}
		err = tmem_stage_init(&q->stage, i < dev->nr_queues ? stage :
						 0);
		if (err)
			return err;
	}
	return 0;
}

/*
 * A queue for each CPU, and, if the device has such, one for its loads. The
 * last queues of the device are those for stores.
 */
static void tmem_share_queues(struct tmem_dev *dev)
{
	unsigned int max = min_t(unsigned int, nr_cpu_ids, TMEM_MAX_QUEUES);
	unsigned int stores = dev->config.nr_store_queues;
	unsigned int others = dev->config.nr_queues - stores;

	if (stores && others <= TMEM_MAX_QUEUES) {
		dev->nr_queues = min(stores, max);
		dev->nr_rings = dev->nr_queues + min(others, max);
	} else {
		dev->nr_queues = min(others, max);
		dev->nr_rings = dev->nr_queues;
	}
}

static struct tmem_dev *tmem_alloc_dev(struct virtio_device *vdev,
				       const struct tmem_config *config)
{
	struct tmem_dev *dev;

	dev = kzalloc(sizeof(*dev), GFP_KERNEL);
	if (!dev)
		return NULL;
	dev->vdev = vdev;
	dev->config = *config;
	dev->max_batch = min_t(unsigned int, config->max_batch,
			       VIRTIO_TMEM_MAX_BATCH);
	dev->store_batch = clamp_t(unsigned int, config->store_batch, 1,
				   dev->max_batch);
	tmem_share_queues(dev);
	mutex_init(&dev->life_lock);
	mutex_init(&dev->lock);
	spin_lock_init(&dev->list_lock);
	mutex_init(&dev->break_lock);
	INIT_LIST_HEAD(&dev->areas);
	INIT_WORK(&dev->event_work, tmem_event_work);
	INIT_WORK(&dev->config_work, tmem_config_work);
	INIT_DELAYED_WORK(&dev->flush_work, tmem_flush_work);
	INIT_DELAYED_WORK(&dev->revive_work, tmem_revive_work);
	dev->events = kcalloc(TMEM_NR_EVENTS, sizeof(*dev->events), GFP_KERNEL);
	dev->queues = kcalloc(dev->nr_rings, sizeof(*dev->queues), GFP_KERNEL);
	/* Free memory when there is none, in their way */
	dev->wq = alloc_workqueue("tmem", WQ_MEM_RECLAIM, 0);
	dev->send_wq = alloc_workqueue("tmem_send", WQ_MEM_RECLAIM |
				       WQ_UNBOUND | WQ_HIGHPRI, 0);
	if (dev->events && dev->queues && dev->wq && dev->send_wq &&
	    !tmem_init_queues(dev))
		return dev;
	tmem_free_dev(dev);
	return NULL;
}

static void tmem_config_changed(struct virtio_device *vdev)
{
	struct tmem_dev *dev = vdev->priv;

	queue_work(dev->wq, &dev->config_work);
}

/* Have queues at the device, or nothing. */
static int tmem_start(struct virtio_device *vdev,
		      const struct tmem_config *config)
{
	struct tmem_dev *dev = tmem_alloc_dev(vdev, config);
	int err;

	if (!dev)
		return -ENOMEM;
	vdev->priv = dev;
	mutex_lock(&dev->life_lock);
	err = tmem_open(dev);
	if (!err) {
		tmem_run(dev);
		tmem_start_users(dev);
		tmem_debugfs_attach(dev);
		tmem_sleep_attach(dev);
	}
	mutex_unlock(&dev->life_lock);
	if (err)
		tmem_free_dev(dev);
	return err;
}

static int tmem_probe(struct virtio_device *vdev)
{
	struct tmem_config config;
	int err;

	tmem_read_config(vdev, &config);
	if (config.page_size != PAGE_SIZE || !config.nr_queues ||
	    !config.max_batch) {
		dev_err(&vdev->dev,
			"cannot use pages of %u bytes, %u queues, batches of %u\n",
			config.page_size, config.nr_queues, config.max_batch);
		return -EINVAL;
	}
	err = tmem_start(vdev, &config);
	if (!err || err == -ENOMEM || !config.nr_store_queues)
		return err;
	/* A front end may have fewer queues than the device behind it */
	config.nr_queues -= config.nr_store_queues;
	config.nr_store_queues = 0;
	return tmem_start(vdev, &config);
}

static void tmem_remove(struct virtio_device *vdev)
{
	struct tmem_dev *dev = vdev->priv;
	unsigned long pages = tmem_dev_pages(dev);

	if (pages)
		dev_err(&vdev->dev, "removed with %lu pages, they are lost\n",
			pages);
	tmem_leave(dev, true);
	cancel_delayed_work_sync(&dev->revive_work);
	tmem_sleep_detach(dev);
	tmem_debugfs_detach(dev);
	tmem_frontswap_detach(dev);
	/* All that is in flight fails, and nothing new enters */
	tmem_break(dev, NULL);
	tmem_block_detach(dev);

	mutex_lock(&dev->lock);
	tmem_areas_detach(dev);
	mutex_unlock(&dev->lock);
	synchronize_srcu(&tmem_srcu);
	/* Nobody knows the device now, nor queues its work */
	cancel_delayed_work_sync(&dev->flush_work);
	cancel_work_sync(&dev->config_work);
	tmem_shut(dev);
	tmem_free_dev(dev);
}

static const unsigned int tmem_features[] = {
	VIRTIO_TMEM_F_EVENTS,
	VIRTIO_TMEM_F_STORE_QUEUES,
};

static const struct virtio_device_id tmem_id_table[] = {
	{ VIRTIO_ID_TMEM, VIRTIO_DEV_ANY_ID },
	{ 0 },
};
MODULE_DEVICE_TABLE(virtio, tmem_id_table);

static struct virtio_driver tmem_driver = {
	.driver.name = "virtio-tmem",
	.driver.owner = THIS_MODULE,
	.id_table = tmem_id_table,
	.feature_table = tmem_features,
	.feature_table_size = ARRAY_SIZE(tmem_features),
	.validate = tmem_validate,
	.probe = tmem_probe,
	.remove = tmem_remove,
	.config_changed = tmem_config_changed,
#ifdef CONFIG_PM_SLEEP
	.freeze = tmem_freeze,
	.restore = tmem_restore,
#endif
};

/*
 * Level "device": parameters of virtio-mmio add their devices before, and
 * zswap, which wants the same slot of frontswap, comes after.
 */
static int __init tmem_init(void)
{
	int err;

	if (!tmem_enable)
		return 0;
	tmem_debugfs_init();
	tmem_plug_init();
	err = register_virtio_driver(&tmem_driver);
	if (err) {
		tmem_plug_exit();
		tmem_debugfs_exit();
	}
	return err;
}
module_init(tmem_init);

static void __exit tmem_exit(void)
{
	if (!tmem_enable)
		return;
	unregister_virtio_driver(&tmem_driver);
	tmem_plug_exit();
	tmem_debugfs_exit();
}
module_exit(tmem_exit);

MODULE_DESCRIPTION("Virtio transcendent memory driver");
MODULE_LICENSE("GPL");
