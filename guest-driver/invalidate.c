// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: pages that are given up.
 *
 * Pages are given up under spinlocks of the swap code, often many at once and
 * often to be stored again soon. So giving up only sets a bit. The next stores
 * on the queue send the keys with their own doorbell, and a worker sends the
 * rest a little later. A store to the key clears the bit: it replaces the old
 * data, so no invalidate is needed.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitops.h>
#include <linux/jiffies.h>
#include <linux/sched.h>

#include "tmem.h"

/* With that many, the worker does not wait any longer */
#define TMEM_HURRY		1024
/* Blocks that are looked at with interrupts off; a block is a word or less */
#define TMEM_SCAN_BLOCKS	1024
/* Batches of one queue that a store sends before it gives up for want of room */
#define TMEM_ROOM_BATCHES	4

/* Collect up to a batch of pending keys of a queue; its lock is held. */
static void tmem_take_pending(struct tmem_area *area, struct tmem_queue *q,
			      struct tmem_slot *slot)
{
	struct tmem_pending *p = &area->queue[q->index];
	unsigned long nr_blocks = DIV_ROUND_UP(area->nr_pages,
					       TMEM_BLOCK_PAGES);
	unsigned long nr_bits = DIV_ROUND_UP(nr_blocks, area->nr_queues);
	unsigned long b = p->hint, first, last, i;
	unsigned int max = min_t(unsigned long, q->dev->max_batch, p->count);
	unsigned int scanned;

	lockdep_assert_held(&q->lock);

	for (scanned = 0; slot->count < max && scanned < TMEM_SCAN_BLOCKS;
	     scanned++) {
		b = find_next_bit(p->blocks, nr_bits, b);
		if (b >= nr_bits) {
			b = find_first_bit(p->blocks, nr_bits);
			if (WARN_ON_ONCE(b >= nr_bits)) {
				p->count = slot->count;
				break;
			}
		}
		first = (b * area->nr_queues + q->index) << TMEM_BLOCK_SHIFT;
		last = min(first + TMEM_BLOCK_PAGES, area->nr_pages);
		for (i = find_next_bit(area->pending, last, first);
		     i < last && slot->count < max;
		     i = find_next_bit(area->pending, last, i + 1)) {
			__clear_bit(i, area->pending);
			tmem_add_entry(slot, i);
		}
		if (i >= last)
			__clear_bit(b, p->blocks);
	}
	p->count -= slot->count;
	p->hint = b;
}

/**
 * tmem_ride() - put a batch into the ring ahead of a request that will follow
 * @area: area of the request
 * @q: queue of the request, its lock is held
 * @min: with fewer pending there is no batch
 *
 * Nobody waits for the answer to the batch.
 */
void tmem_ride(struct tmem_area *area, struct tmem_queue *q, unsigned int min)
{
	struct tmem_slot *slot;

	lockdep_assert_held(&q->lock);

	if (area->queue[q->index].count < min)
		return;
	slot = tmem_slot_tryget(q, TMEM_SLOT_BATCH);
	if (!slot)
		return;
	tmem_fill_req(slot, area, q->dev, VIRTIO_TMEM_OP_INVALIDATE_PAGE);
	tmem_take_pending(area, q, slot);
	slot->async = true;
	/* The caller finds the same error, and the device broken */
	if (!slot->count || tmem_queue_add(q, slot)) {
		tmem_slot_release(q, slot);
		return;
	}
	tmem_count_op(area->user, TMEM_INVALIDATE_BATCHES_RODE, 1);
}

/* Tell the host after a while of what was given up, and send what is staged. */
void tmem_flush_later(struct tmem_dev *dev, unsigned int ms)
{
	queue_delayed_work(dev->wq, &dev->flush_work, msecs_to_jiffies(ms));
}

/**
 * tmem_invalidate() - give a page up
 * @area: area
 * @index: index of the page in the area
 *
 * A later tmem_load() returns -ENOENT. The host is told later. In any context;
 * it neither sleeps nor rings the doorbell.
 */
void tmem_invalidate(struct tmem_area *area, unsigned long index)
{
	unsigned long flags, before, after;
	struct tmem_pending *p;
	struct tmem_queue *q;
	struct tmem_dev *dev;
	bool closed;
	int srcu;

	if (index >= area->nr_pages)
		return;

	srcu = srcu_read_lock(&tmem_srcu);
	dev = srcu_dereference(area->dev, &tmem_srcu);
	if (!dev) {
		tmem_forget_kept(area, index);
		goto out;
	}
	q = tmem_area_queue(area, dev, index);
	p = &area->queue[q->index];

	spin_lock_irqsave(&q->lock, flags);
	before = p->count;
	tmem_give_up(area, q, index);
	after = p->count;
	closed = q->closed;
	spin_unlock_irqrestore(&q->lock, flags);
	/* The device is being removed */
	if (unlikely(!list_empty(&area->kept)))
		tmem_forget_kept(area, index);

	if (before == after || closed)
		goto out;
	if (after == TMEM_HURRY)
		mod_delayed_work(dev->wq, &dev->flush_work, 0);
	else
		tmem_flush_later(dev, TMEM_FLUSH_MS);
out:
	srcu_read_unlock(&tmem_srcu, srcu);
}

/* Send a batch of pending keys of one queue, and wait for the answer. */
static int tmem_flush_batch(struct tmem_area *area, struct tmem_queue *q)
{
	struct tmem_slot *slot;
	unsigned long flags;
	bool kick = false;
	int err = 0;

	slot = tmem_slot_get(q, TMEM_SLOT_BATCH);
	if (!slot)
		return -EIO;
	tmem_fill_req(slot, area, q->dev, VIRTIO_TMEM_OP_INVALIDATE_PAGE);
	spin_lock_irqsave(&q->lock, flags);
	tmem_take_pending(area, q, slot);
	if (slot->count) {
		err = tmem_queue_add(q, slot);
		kick = !err && virtqueue_kick_prepare(q->vq);
	}
	spin_unlock_irqrestore(&q->lock, flags);
	if (slot->count && !err)
		err = tmem_wait_slot(q, slot, kick,
				     TMEM_KICKS_INVALIDATE);
	tmem_slot_put(q, slot);
	return err;
}

/**
 * tmem_flush_for_room() - tell the host of pages which it need not keep
 * @area: area that wants room
 * @dev: its device
 *
 * A bounded number of them; the worker sends the others. May sleep.
 *
 * Return: whether the host has heard of any.
 */
bool tmem_flush_for_room(struct tmem_area *area, struct tmem_dev *dev)
{
	bool sent = false;
	unsigned int i, n;

	for (i = 0; i < area->nr_queues; i++) {
		struct tmem_pending *p = &area->queue[i];

		for (n = 0; n < TMEM_ROOM_BATCHES && READ_ONCE(p->count); n++) {
			if (tmem_flush_batch(area, &dev->queues[i]))
				return sent;
			sent = true;
		}
	}
	if (tmem_area_pending(area))
		mod_delayed_work(dev->wq, &dev->flush_work, 0);
	return sent;
}

/* Tell the host of all pages of an area that were given up. May sleep. */
void tmem_flush_area(struct tmem_area *area, struct tmem_dev *dev)
{
	unsigned int i;

	for (i = 0; i < area->nr_queues; i++) {
		/* Without the lock: a new invalidate queues the work */
		while (READ_ONCE(area->queue[i].count) &&
		       !tmem_flush_batch(area, &dev->queues[i]))
			cond_resched();
	}
}
