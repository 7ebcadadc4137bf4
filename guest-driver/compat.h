/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Differences between the kernels this driver builds for: 6.1 to 6.8, and 6.11
 * to 6.12. A name that came with a change tells whether the change is there.
 */
#ifndef _TMEM_COMPAT_H
#define _TMEM_COMPAT_H

#include <linux/blkdev.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>

/* 6.11: limits and features of a queue are arguments of its allocation */
#ifdef BLK_FEAT_SYNCHRONOUS
#define TMEM_HAVE_QUEUE_FEATURES 1
#endif

/* 6.3: a flag makes a disk synchronous, no longer the page entry point */
#if !defined(QUEUE_FLAG_SYNCHRONOUS) && !defined(TMEM_HAVE_QUEUE_FEATURES)
#define TMEM_HAVE_RW_PAGE 1
#endif

/* 6.11, too: names and callbacks of virtqueues are in one struct */
#ifndef TMEM_HAVE_QUEUE_FEATURES
struct virtqueue_info {
	const char *name;
	vq_callback_t *callback;
	bool ctx;
};

static inline int tmem_find_vqs(struct virtio_device *vdev, unsigned int nvqs,
				struct virtqueue *vqs[],
				struct virtqueue_info info[])
{
	vq_callback_t **callbacks;
	const char **names;
	int err = -ENOMEM;
	unsigned int i;

	callbacks = kcalloc(nvqs, sizeof(*callbacks), GFP_KERNEL);
	names = kcalloc(nvqs, sizeof(*names), GFP_KERNEL);
	if (callbacks && names) {
		for (i = 0; i < nvqs; i++) {
			callbacks[i] = info[i].callback;
			names[i] = info[i].name;
		}
		err = virtio_find_vqs(vdev, nvqs, vqs, callbacks, names, NULL);
	}
	kfree(names);
	kfree(callbacks);
	return err;
}
#else
static inline int tmem_find_vqs(struct virtio_device *vdev, unsigned int nvqs,
				struct virtqueue *vqs[],
				struct virtqueue_info info[])
{
	return virtio_find_vqs(vdev, nvqs, vqs, info, NULL);
}
#endif

#ifndef TMEM_HAVE_QUEUE_FEATURES
static inline struct gendisk *tmem_alloc_disk(bool sync)
{
	struct gendisk *disk = blk_alloc_disk(NUMA_NO_NODE);
	struct request_queue *q;

	if (!disk)
		return ERR_PTR(-ENOMEM);
	q = disk->queue;
	blk_queue_logical_block_size(q, PAGE_SIZE);
	blk_queue_physical_block_size(q, PAGE_SIZE);
	blk_queue_io_min(q, PAGE_SIZE);
	blk_queue_io_opt(q, PAGE_SIZE);
	q->limits.discard_granularity = PAGE_SIZE;
	blk_queue_max_discard_sectors(q, UINT_MAX);
	blk_queue_max_write_zeroes_sectors(q, UINT_MAX);
	blk_queue_flag_set(QUEUE_FLAG_NONROT, q);
#ifdef QUEUE_FLAG_SYNCHRONOUS
	if (sync)
		blk_queue_flag_set(QUEUE_FLAG_SYNCHRONOUS, q);
#endif
	blk_queue_flag_clear(QUEUE_FLAG_ADD_RANDOM, q);
	return disk;
}
#else
static inline struct gendisk *tmem_alloc_disk(bool sync)
{
	struct queue_limits lim = {
		.logical_block_size = PAGE_SIZE,
		.physical_block_size = PAGE_SIZE,
		.io_min = PAGE_SIZE,
		.io_opt = PAGE_SIZE,
		.discard_granularity = PAGE_SIZE,
		.max_hw_discard_sectors = UINT_MAX,
		.max_write_zeroes_sectors = UINT_MAX,
		.features = sync ? BLK_FEAT_SYNCHRONOUS : 0,
	};

	return blk_alloc_disk(&lim, NUMA_NO_NODE);
}
#endif

#endif /* _TMEM_COMPAT_H */
