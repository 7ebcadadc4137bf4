// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: the device.
 *
 * With tmem=1 the driver makes a persistent pool for swap areas and one for a
 * swap disk of its own. Without, it does not even register.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#include "compat.h"
#include "tmem.h"

/* More queues than this only cost memory */
#define TMEM_MAX_QUEUES		64

/*
 * Readers are the operations on pages: they sleep, and they end when the host
 * has answered or the device was given up. Protects tmem_area.dev.
 */
DEFINE_SRCU(tmem_srcu);

static bool tmem_enable;
#ifdef MODULE
module_param_named(enable, tmem_enable, bool, 0444);
MODULE_PARM_DESC(enable, "Use the device (off by default)");
#else
core_param(tmem, tmem_enable, bool, 0444);
#endif

static bool tmem_frontswap = true;
module_param_named(frontswap, tmem_frontswap, bool, 0444);
MODULE_PARM_DESC(frontswap, "Store pages of swap areas (on by default)");

/* Negative: what the host suggests */
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

unsigned int tmem_timeout_ms;
module_param_named(timeout_ms, tmem_timeout_ms, uint, 0444);
MODULE_PARM_DESC(timeout_ms, "Give a device up that answers nothing for that long, 0 for never (default: 0)");

/* --- events --- */

static void tmem_post_event(struct tmem_dev *dev,
			    struct virtio_tmem_event *event)
{
	struct scatterlist sg;

	sg_init_one(&sg, event, sizeof(*event));
	if (virtqueue_add_inbuf(dev->event_vq, &sg, 1, event, GFP_KERNEL))
		dev_warn_once(&dev->vdev->dev, "event queue failed\n");
}

/* After it a store that was refused is worth another try. */
static bool tmem_event_makes_room(const struct virtio_tmem_event *event)
{
	return event->type == cpu_to_le16(VIRTIO_TMEM_EVENT_LIMITS) ||
	       event->level != cpu_to_le32(VIRTIO_TMEM_PRESSURE_FULL);
}

static void tmem_event_work(struct work_struct *work)
{
	struct tmem_dev *dev = container_of(work, struct tmem_dev, event_work);
	struct virtio_tmem_event *event;
	unsigned int len;

	do {
		virtqueue_disable_cb(dev->event_vq);
		while ((event = virtqueue_get_buf(dev->event_vq, &len))) {
			tmem_count(TMEM_EVENTS);
			if (len >= sizeof(*event)) {
				WRITE_ONCE(dev->host_pressure,
					   le32_to_cpu(event->level));
				WRITE_ONCE(dev->host_limit,
					   le64_to_cpu(event->limit_bytes));
				WRITE_ONCE(dev->host_used,
					   le64_to_cpu(event->used_bytes));
				if (tmem_event_makes_room(event))
					WRITE_ONCE(dev->full, false);
			}
			tmem_post_event(dev, event);
		}
	} while (!virtqueue_enable_cb(dev->event_vq));
	virtqueue_kick(dev->event_vq);
}

static void tmem_event_callback(struct virtqueue *vq)
{
	struct tmem_dev *dev = vq->vdev->priv;

	queue_work(dev->wq, &dev->event_work);
}

static void tmem_config_work(struct work_struct *work)
{
	struct tmem_dev *dev = container_of(work, struct tmem_dev, config_work);
	struct virtio_device *vdev = dev->vdev;
	u32 pressure;
	u64 limit;

	if (!READ_ONCE(dev->open))
		return;
	if (vdev->config->get_status(vdev) & VIRTIO_CONFIG_S_NEEDS_RESET) {
		tmem_break(dev, "device needs a reset");
		return;
	}
	virtio_cread_le(vdev, struct virtio_tmem_config, limit_bytes, &limit);
	WRITE_ONCE(dev->host_limit, limit);
	if (virtio_has_feature(vdev, VIRTIO_TMEM_F_EVENTS)) {
		virtio_cread_le(vdev, struct virtio_tmem_config, pressure,
				&pressure);
		WRITE_ONCE(dev->host_pressure, pressure);
	}
}

static void tmem_config_changed(struct virtio_device *vdev)
{
	struct tmem_dev *dev = vdev->priv;

	queue_work(dev->wq, &dev->config_work);
}

/* --- queues and pools --- */

static int tmem_init_vqs(struct tmem_dev *dev)
{
	unsigned int i, nr = VIRTIO_TMEM_FIRST_REQUEST_QUEUE + dev->nr_queues;
	struct virtqueue_info *info;
	struct virtqueue **vqs;
	int err = -ENOMEM;

	vqs = kcalloc(nr, sizeof(*vqs), GFP_KERNEL);
	info = kcalloc(nr, sizeof(*info), GFP_KERNEL);
	if (!vqs || !info)
		goto free;
	info[VIRTIO_TMEM_EVENT_QUEUE].name = "event";
	info[VIRTIO_TMEM_EVENT_QUEUE].callback = tmem_event_callback;
	for (i = VIRTIO_TMEM_FIRST_REQUEST_QUEUE; i < nr; i++) {
		info[i].name = "request";
		info[i].callback = tmem_queue_callback;
	}
	err = tmem_find_vqs(dev->vdev, nr, vqs, info);
	if (err)
		goto free;

	dev->event_vq = vqs[VIRTIO_TMEM_EVENT_QUEUE];
	dev->has_vqs = true;
	for (i = 0; i < dev->nr_queues && !err; i++)
		err = tmem_queue_start(&dev->queues[i],
				       vqs[VIRTIO_TMEM_FIRST_REQUEST_QUEUE + i]);
	if (err) {
		for (i = 0; i < dev->nr_queues; i++)
			tmem_queue_close(&dev->queues[i]);
		tmem_close(dev);
	}
free:
	kfree(info);
	kfree(vqs);
	return err;
}

/* Before the device is ready: it puts nothing there meanwhile. */
static void tmem_fill_events(struct tmem_dev *dev)
{
	unsigned int i, nr;

	if (!virtio_has_feature(dev->vdev, VIRTIO_TMEM_F_EVENTS))
		return;
	nr = min_t(unsigned int, TMEM_NR_EVENTS,
		   virtqueue_get_vring_size(dev->event_vq));
	for (i = 0; i < nr; i++)
		tmem_post_event(dev, &dev->events[i]);
}

/**
 * tmem_open() - have queues at a device whose features are negotiated
 * @dev: device without virtqueues
 *
 * May sleep and allocate.
 *
 * Return: 0 and the device takes requests, or an error.
 */
int tmem_open(struct tmem_dev *dev)
{
	int err = tmem_init_vqs(dev);

	if (err)
		return err;
	tmem_fill_events(dev);
	mutex_lock(&dev->break_lock);
	dev->open = true;
	mutex_unlock(&dev->break_lock);
	virtio_device_ready(dev->vdev);
	if (virtio_has_feature(dev->vdev, VIRTIO_TMEM_F_EVENTS))
		virtqueue_kick(dev->event_vq);
	tmem_config_work(&dev->config_work);
	return 0;
}

/* Free the virtqueues: the device is quiet, and nobody has a request. */
void tmem_close(struct tmem_dev *dev)
{
	if (!dev->has_vqs)
		return;
	/* A callback that has begun may still queue the work, and none begins */
	virtio_break_device(dev->vdev);
	virtio_synchronize_cbs(dev->vdev);
	cancel_work_sync(&dev->event_work);
	/* Who sends invalidates is between two requests */
	mutex_lock(&dev->lock);
	dev->vdev->config->del_vqs(dev->vdev);
	dev->has_vqs = false;
	mutex_unlock(&dev->lock);
}

static int tmem_create_pool(struct tmem_dev *dev, enum tmem_user user)
{
	return tmem_control(dev, VIRTIO_TMEM_OP_CREATE_POOL, 0, NULL,
			    &dev->pool[user]);
}

static void tmem_destroy_pool(struct tmem_dev *dev, enum tmem_user user)
{
	tmem_control(dev, VIRTIO_TMEM_OP_DESTROY_POOL, dev->pool[user], NULL,
		     NULL);
}

/* Pools for those who had some: all of them, or the device is given up. */
int tmem_create_pools(struct tmem_dev *dev)
{
	enum tmem_user user;
	int err;

	for (user = 0; user < TMEM_NR_USERS; user++) {
		if (!dev->has_user[user])
			continue;
		err = tmem_create_pool(dev, user);
		if (err) {
			tmem_break(dev, "no pool");
			return err;
		}
	}
	return 0;
}

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

/* Who wants pages at the host, and has no place for them yet. */
void tmem_start_users(struct tmem_dev *dev)
{
	if (!dev->has_user[TMEM_USER_FRONTSWAP])
		tmem_start_frontswap(dev);
	if (!dev->has_user[TMEM_USER_BLOCK])
		tmem_start_block(dev);
}

/* --- driver --- */

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
	 * Event indices cannot say "no interrupt", only "not soon", where the
	 * flag of the available ring can.
	 */
	__virtio_clear_bit(vdev, VIRTIO_RING_F_EVENT_IDX);
	return 0;
}

static void tmem_free_dev(struct tmem_dev *dev)
{
	unsigned int i;

	if (dev->wq)
		destroy_workqueue(dev->wq);
	if (dev->queues) {
		for (i = 0; i < dev->nr_queues; i++)
			tmem_queue_free(&dev->queues[i]);
	}
	kfree(dev->queues);
	kfree(dev->events);
	kfree(dev);
}

static struct tmem_dev *tmem_alloc_dev(struct virtio_device *vdev,
				       unsigned int nr_queues,
				       unsigned int max_batch)
{
	struct tmem_dev *dev;
	unsigned int i;

	dev = kzalloc(sizeof(*dev), GFP_KERNEL);
	if (!dev)
		return NULL;
	dev->vdev = vdev;
	dev->nr_queues = nr_queues;
	dev->max_batch = max_batch;
	mutex_init(&dev->life_lock);
	mutex_init(&dev->lock);
	mutex_init(&dev->break_lock);
	INIT_LIST_HEAD(&dev->areas);
	INIT_WORK(&dev->event_work, tmem_event_work);
	INIT_WORK(&dev->config_work, tmem_config_work);
	INIT_DELAYED_WORK(&dev->flush_work, tmem_flush_work);
	INIT_DELAYED_WORK(&dev->revive_work, tmem_revive_work);
	dev->events = kcalloc(TMEM_NR_EVENTS, sizeof(*dev->events), GFP_KERNEL);
	dev->queues = kcalloc(nr_queues, sizeof(*dev->queues), GFP_KERNEL);
	/* Frees memory when there is none, in its way */
	dev->wq = alloc_workqueue("tmem", WQ_MEM_RECLAIM, 0);
	if (!dev->events || !dev->queues || !dev->wq)
		goto free;
	for (i = 0; i < nr_queues; i++) {
		if (tmem_queue_init(&dev->queues[i], dev, i))
			goto free;
	}
	return dev;

free:
	tmem_free_dev(dev);
	return NULL;
}

/* What of the configuration the driver relies on */
void tmem_read_config(struct virtio_device *vdev, u32 *page_size,
		      u16 *nr_queues, u16 *max_batch)
{
	virtio_cread_le(vdev, struct virtio_tmem_config, page_size, page_size);
	virtio_cread_le(vdev, struct virtio_tmem_config, num_request_queues,
			nr_queues);
	virtio_cread_le(vdev, struct virtio_tmem_config, max_batch, max_batch);
}

static int tmem_probe(struct virtio_device *vdev)
{
	u16 nr_queues, max_batch;
	struct tmem_dev *dev;
	u32 page_size;
	int err;

	tmem_read_config(vdev, &page_size, &nr_queues, &max_batch);
	if (page_size != PAGE_SIZE || !nr_queues || !max_batch) {
		dev_err(&vdev->dev,
			"cannot use pages of %u bytes, %u queues, batches of %u\n",
			page_size, nr_queues, max_batch);
		return -EINVAL;
	}

	dev = tmem_alloc_dev(vdev,
			     min3((unsigned int)nr_queues, nr_cpu_ids,
				  (unsigned int)TMEM_MAX_QUEUES),
			     min_t(unsigned int, max_batch,
				   VIRTIO_TMEM_MAX_BATCH));
	if (!dev)
		return -ENOMEM;
	vdev->priv = dev;
	mutex_lock(&dev->life_lock);
	err = tmem_open(dev);
	if (!err) {
		tmem_run(dev);
		tmem_start_users(dev);
		tmem_stats_attach(dev);
		tmem_sleep_attach(dev);
	}
	mutex_unlock(&dev->life_lock);
	if (err)
		tmem_free_dev(dev);
	return err;
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
	tmem_stats_detach(dev);
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
	tmem_stats_init();
	err = register_virtio_driver(&tmem_driver);
	if (err)
		tmem_stats_exit();
	return err;
}
module_init(tmem_init);

static void __exit tmem_exit(void)
{
	if (!tmem_enable)
		return;
	unregister_virtio_driver(&tmem_driver);
	tmem_stats_exit();
}
module_exit(tmem_exit);

MODULE_DESCRIPTION("Virtio transcendent memory driver");
MODULE_LICENSE("GPL");
