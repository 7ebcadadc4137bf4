// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: the virtqueues, and messages of the host:
 * events and changes of the configuration.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/moduleparam.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#include "compat.h"
#include "tmem.h"

static bool tmem_load_queues = true;
module_param_named(load_queues, tmem_load_queues, bool, 0444);
MODULE_PARM_DESC(load_queues, "Send loads on other queues than stores, if the device has such (on by default)");

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

void tmem_event_work(struct work_struct *work)
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
				if (tmem_event_makes_room(event)) {
					tmem_has_room(dev);
					mod_delayed_work(dev->wq,
							 &dev->flush_work, 0);
				}
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

void tmem_config_work(struct work_struct *work)
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

static int tmem_init_vqs(struct tmem_dev *dev)
{
	unsigned int i, nr = VIRTIO_TMEM_FIRST_REQUEST_QUEUE;
	struct virtqueue_info *info;
	struct virtqueue **vqs;
	int err = -ENOMEM;

	for (i = 0; i < dev->nr_rings; i++)
		nr = max(nr, dev->queues[i].vq_index + 1);
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
	for (i = 0; i < dev->nr_rings && !err; i++)
		err = tmem_queue_start(&dev->queues[i],
				       vqs[dev->queues[i].vq_index]);
	if (err) {
		for (i = 0; i < dev->nr_rings; i++)
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

/* Free the virtqueues: the device is quiet, and there are no requests. */
void tmem_close(struct tmem_dev *dev)
{
	unsigned int i;

	if (!dev->has_vqs)
		return;
	/* A callback that has begun may still queue the work, and none begins */
	virtio_break_device(dev->vdev);
	virtio_synchronize_cbs(dev->vdev);
	cancel_work_sync(&dev->event_work);
	for (i = 0; i < dev->nr_queues; i++)
		cancel_work_sync(&dev->queues[i].send_work);
	/* It may wait at a ring without the lock; from now on there is no need */
	cancel_delayed_work_sync(&dev->flush_work);
	/* A task that sends invalidates is between two requests */
	mutex_lock(&dev->lock);
	dev->vdev->config->del_vqs(dev->vdev);
	dev->has_vqs = false;
	mutex_unlock(&dev->lock);
}

/* The part of the configuration on which the driver relies */
void tmem_read_config(struct virtio_device *vdev, struct tmem_config *config)
{
	virtio_cread_le(vdev, struct virtio_tmem_config, page_size,
			&config->page_size);
	virtio_cread_le(vdev, struct virtio_tmem_config, num_request_queues,
			&config->nr_queues);
	virtio_cread_le(vdev, struct virtio_tmem_config, max_batch,
			&config->max_batch);
	config->nr_store_queues = 0;
	config->store_batch = TMEM_STORE_BATCH;
	if (!virtio_has_feature(vdev, VIRTIO_TMEM_F_STORE_QUEUES))
		return;
	virtio_cread_le(vdev, struct virtio_tmem_config, num_store_queues,
			&config->nr_store_queues);
	virtio_cread_le(vdev, struct virtio_tmem_config, store_batch,
			&config->store_batch);
	/* Of no use: the device has none, or no other */
	if (config->nr_store_queues >= config->nr_queues ||
	    !tmem_load_queues)
		config->nr_store_queues = 0;
}
