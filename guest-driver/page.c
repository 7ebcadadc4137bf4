// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: store and load.
 *
 * All operations on a page go through one queue, and in the order of its ring,
 * so that no invalidate overtakes the store which follows it.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitops.h>
#include <linux/highmem.h>
#include <linux/jiffies.h>
#include <linux/mm.h>
#include <linux/ratelimit.h>

#include "tmem.h"

/* With that many to send, a batch rides with the next store */
#define TMEM_RIDE_STORE		16
/* A load waits for others only when the worker does not keep up */
#define TMEM_RIDE_LOAD		1024
/* How long the host is not asked again after it refused a page */
#define TMEM_FULL_MS		10

/* Update the bits when a store enters the ring; lock held. */
static int tmem_begin_store(struct tmem_area *area, struct tmem_queue *q,
			    unsigned long index, struct page *page, bool saved)
{
	if (saved) {
		/* It was given up meanwhile */
		if (xa_load(&area->saved, index) != page)
			return -ENOENT;
	} else {
		tmem_clear_saved(area, index);
		tmem_clear_lost(area, index);
	}
	if (__test_and_clear_bit(index, area->pending)) {
		area->queue[q->index].count--;
		tmem_count_op(area->user, TMEM_INVALIDATES_OVERTAKEN, 1);
	}
	return 0;
}

/**
 * tmem_transfer() - move one page
 * @area: area
 * @dev: its device
 * @op: VIRTIO_TMEM_OP_STORE or VIRTIO_TMEM_OP_LOAD
 * @index: index of the page in the area
 * @page: the data
 * @saved: whether @page is the one in tmem_area.saved
 * @status: set to the status from the host
 *
 * May sleep, as long as the host takes and the device has not failed.
 *
 * Return: 0 with @status set; -ENOENT when there is no such page; -EIO when
 * there was no answer, and the host does not touch @page any more.
 */
int tmem_transfer(struct tmem_area *area, struct tmem_dev *dev, u16 op,
		  unsigned long index, struct page *page, bool saved,
		  u8 *status)
{
	bool store = op == VIRTIO_TMEM_OP_STORE;
	struct tmem_queue *q = tmem_area_queue(area, dev, index);
	struct tmem_slot *slot;
	unsigned long flags;
	bool kick = false;
	int err = 0;

	slot = tmem_slot_get(q, TMEM_SLOT_PAGE);
	if (!slot)
		return -EIO;
	tmem_fill_req(slot, area, dev, op);
	tmem_add_entry(slot, index);

	spin_lock_irqsave(&q->lock, flags);
	if (q->closed)
		err = -EIO;
	else if (store)
		err = tmem_begin_store(area, q, index, page, saved);
	else if (!test_bit(index, area->present))
		err = -ENOENT;
	if (!err) {
		tmem_ride(area, q, store ? TMEM_RIDE_STORE : TMEM_RIDE_LOAD);
		err = tmem_queue_add(q, slot, page);
	}
	if (!err)
		kick = virtqueue_kick_prepare(q->vq);
	spin_unlock_irqrestore(&q->lock, flags);

	if (!err)
		err = tmem_wait(q, slot, kick, TMEM_KICKS_PAGE);
	if (!err) {
		*status = tmem_slot_status(slot, 0);
		if (!store && *status == VIRTIO_TMEM_S_OK &&
		    slot->len < struct_size(slot->in, status, 1) + PAGE_SIZE) {
			tmem_count(TMEM_BAD_ANSWERS);
			*status = VIRTIO_TMEM_S_INVALID;
		}
	}
	tmem_slot_put(q, slot);
	return err;
}

static bool tmem_is_withheld(struct tmem_dev *dev)
{
	return READ_ONCE(dev->hibernating) ||
	       (READ_ONCE(dev->full) &&
		time_before(jiffies, READ_ONCE(dev->full_until)));
}

/* The host would refuse: do as if it had, without asking. */
static void tmem_withhold(struct tmem_area *area, struct tmem_dev *dev,
			  unsigned long index)
{
	struct tmem_queue *q = tmem_area_queue(area, dev, index);
	unsigned long flags;

	spin_lock_irqsave(&q->lock, flags);
	tmem_give_up(area, q, index);
	spin_unlock_irqrestore(&q->lock, flags);
	if (tmem_area_pending(area))
		queue_delayed_work(dev->wq, &dev->flush_work, 0);
}

static void tmem_set_full(struct tmem_dev *dev)
{
	WRITE_ONCE(dev->full_until, jiffies + msecs_to_jiffies(TMEM_FULL_MS));
	WRITE_ONCE(dev->full, true);
}

/* No store entered the ring: drop the copy in the guest, too. */
static void tmem_forget_saved(struct tmem_area *area, struct tmem_dev *dev,
			      unsigned long index)
{
	struct tmem_queue *q = tmem_area_queue(area, dev, index);
	unsigned long flags;

	spin_lock_irqsave(&q->lock, flags);
	tmem_clear_saved(area, index);
	spin_unlock_irqrestore(&q->lock, flags);
}

/* Count the host's answer to a store, and turn it into an error. */
static int tmem_store_result(struct tmem_area *area, u8 status)
{
	switch (status) {
	case VIRTIO_TMEM_S_OK:
		tmem_count_op(area->user, TMEM_STORES_OK, 1);
		return 0;
	case VIRTIO_TMEM_S_NO_SPACE:
		tmem_count_op(area->user, TMEM_STORES_NO_SPACE, 1);
		return -ENOSPC;
	case VIRTIO_TMEM_S_FROZEN:
		tmem_count_op(area->user, TMEM_STORES_FROZEN, 1);
		return -EBUSY;
	case VIRTIO_TMEM_S_NO_MEMORY:
		tmem_count_op(area->user, TMEM_STORES_NO_MEMORY, 1);
		return -ENOMEM;
	default:
		tmem_count_op(area->user, TMEM_STORES_REFUSED_OTHER, 1);
		return -EREMOTEIO;
	}
}

static int tmem_store_at(struct tmem_area *area, struct tmem_dev *dev,
			 unsigned long index, struct page *page)
{
	u8 status;
	int err;

	if (tmem_is_withheld(dev)) {
		tmem_withhold(area, dev, index);
		tmem_count_op(area->user, TMEM_STORES_WITHHELD, 1);
		return -ENOSPC;
	}
	err = tmem_transfer(area, dev, VIRTIO_TMEM_OP_STORE, index, page,
			    false, &status);
	if (err)
		goto failed;
	err = tmem_store_result(area, status);
	/* There may be more room than the host knows of */
	if (err == -ENOSPC && tmem_flush_for_room(area, dev)) {
		err = tmem_transfer(area, dev, VIRTIO_TMEM_OP_STORE, index,
				    page, false, &status);
		if (err)
			goto failed;
		err = tmem_store_result(area, status);
	}
	if (err)
		tmem_set_full(dev);
	return err;

failed:
	tmem_forget_saved(area, dev, index);
	tmem_count_op(area->user, TMEM_STORES_FAILED, 1);
	return err;
}

/* One try: -EAGAIN while the guest sleeps. */
static int tmem_try_store(struct tmem_area *area, unsigned long index,
			  struct page *page)
{
	struct tmem_dev *dev;
	int srcu, err;

	srcu = srcu_read_lock(&tmem_srcu);
	dev = srcu_dereference(area->dev, &tmem_srcu);
	if (!dev) {
		tmem_count_op(area->user, TMEM_STORES_FAILED, 1);
		err = -ENODEV;
	} else if (READ_ONCE(dev->state) == TMEM_PAUSED) {
		err = -EAGAIN;
	} else {
		err = tmem_store_at(area, dev, index, page);
	}
	srcu_read_unlock(&tmem_srcu, srcu);
	return err;
}

/**
 * tmem_store() - hand a page over to the host
 * @area: area
 * @index: index of the page in the area
 * @page: the data
 *
 * When it fails, the host's page for this index is dropped. May sleep.
 *
 * A refused page is offered again by the next caller: the swap device behind
 * frontswap, reclaim. For a short while after a refusal the host is not asked,
 * unless there is reason to think that it has room.
 *
 * Return: 0 when the host keeps the page, else an error.
 */
int tmem_store(struct tmem_area *area, unsigned long index, struct page *page)
{
	int err;

	if (index >= area->nr_pages)
		return -EINVAL;
	while ((err = tmem_try_store(area, index, page)) == -EAGAIN)
		tmem_wait_while_paused(area);
	return err;
}

/*
 * The result without asking the host: 0 with the page, -ENOENT when there is
 * none, -EIO when it is lost; 1 when the host has it.
 */
static int tmem_load_here(struct tmem_area *area, struct tmem_dev *dev,
			  unsigned long index, struct page *page)
{
	struct tmem_queue *q = tmem_area_queue(area, dev, index);
	struct page *saved;
	unsigned long flags;
	int found = 1;

	spin_lock_irqsave(&q->lock, flags);
	saved = xa_load(&area->saved, index);
	if (saved) {
		copy_highpage(page, saved);
		found = 0;
	} else if (tmem_is_lost(area, index)) {
		found = -EIO;
	} else if (!test_bit(index, area->present)) {
		found = -ENOENT;
	}
	spin_unlock_irqrestore(&q->lock, flags);
	return found;
}

/* The host does not give an accepted page back. */
static void tmem_report_lost(struct tmem_area *area, struct tmem_dev *dev,
			     unsigned long index, u8 status)
{
	static DEFINE_RATELIMIT_STATE(limit, 10 * HZ, 1);

	if (__ratelimit(&limit))
		dev_err(&dev->vdev->dev,
			"the host has lost page %lu of %s, status %u: who needs it gets an I/O error; the log of the host's tmem service may say why\n",
			index,
			area->user == TMEM_USER_BLOCK ? "the swap disk" :
			"a swap area",
			status);
}

static int tmem_load_from_host(struct tmem_area *area, struct tmem_dev *dev,
			       unsigned long index, struct page *page)
{
	u8 status;
	int err;

	err = tmem_transfer(area, dev, VIRTIO_TMEM_OP_LOAD, index, page, false,
			    &status);
	if (err == -ENOENT)
		return err;
	if (err) {
		tmem_count_op(area->user, TMEM_LOADS_FAILED, 1);
		return -EIO;
	}
	switch (status) {
	case VIRTIO_TMEM_S_OK:
		tmem_count_op(area->user, TMEM_LOADS_OK, 1);
		return 0;
	case VIRTIO_TMEM_S_NOT_FOUND:
		tmem_count_op(area->user, TMEM_LOADS_LOST, 1);
		break;
	case VIRTIO_TMEM_S_IO_ERROR:
		tmem_count_op(area->user, TMEM_LOADS_IO_ERROR, 1);
		break;
	default:
		tmem_count_op(area->user, TMEM_LOADS_FAILED, 1);
	}
	tmem_report_lost(area, dev, index, status);
	return -EIO;
}

/* One try: -EAGAIN while the guest sleeps. */
static int tmem_try_load(struct tmem_area *area, unsigned long index,
			 struct page *page)
{
	struct tmem_dev *dev;
	int srcu, err;

	srcu = srcu_read_lock(&tmem_srcu);
	dev = srcu_dereference(area->dev, &tmem_srcu);
	if (!dev) {
		tmem_count_op(area->user, TMEM_LOADS_FAILED, 1);
		err = -EIO;
	} else if (READ_ONCE(dev->state) == TMEM_PAUSED) {
		err = -EAGAIN;
	} else {
		err = tmem_load_here(area, dev, index, page);
		if (err > 0)
			err = tmem_load_from_host(area, dev, index, page);
		else if (err == -EIO)
			tmem_count_op(area->user, TMEM_LOADS_LOST, 1);
		else if (!err)
			tmem_count_op(area->user, TMEM_LOADS_SAVED, 1);
		if (err == -ENOENT)
			tmem_count_op(area->user, TMEM_LOADS_ABSENT, 1);
	}
	srcu_read_unlock(&tmem_srcu, srcu);
	return err;
}

/**
 * tmem_load() - get a page back; the host keeps its copy
 * @area: area
 * @index: index of the page in the area
 * @page: where to
 *
 * May sleep.
 *
 * Return: 0; -ENOENT when no data was accepted for this index, or it was given
 * up; -EIO when there was data and it cannot be loaded: @page is then
 * undefined.
 */
int tmem_load(struct tmem_area *area, unsigned long index, struct page *page)
{
	int err;

	if (index >= area->nr_pages)
		return -EINVAL;
	while ((err = tmem_try_load(area, index, page)) == -EAGAIN)
		tmem_wait_while_paused(area);
	return err;
}
