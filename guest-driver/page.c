// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: store and load.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/ratelimit.h>

#include "tmem.h"

/**
 * tmem_io_begin() - begin to store or load pages of an area
 * @io: to be set up
 * @area: area
 * @op: VIRTIO_TMEM_OP_STORE or VIRTIO_TMEM_OP_LOAD
 * @many: whether there may be several pages, which can share a request
 *
 * May sleep, while the guest goes to sleep or wakes up.
 */
void tmem_io_begin(struct tmem_io *io, struct tmem_area *area, u16 op,
		   bool many)
	__acquires(&tmem_srcu)
{
	struct tmem_dev *dev;

	for (;;) {
		io->srcu = srcu_read_lock(&tmem_srcu);
		dev = srcu_dereference(area->dev, &tmem_srcu);
		if (!dev || READ_ONCE(dev->state) != TMEM_PAUSED)
			break;
		srcu_read_unlock(&tmem_srcu, io->srcu);
		tmem_wait_while_paused(area);
	}
	io->err = 0;
	io->fill = false;
	io->done = NULL;
	io->transfer = (struct tmem_transfer) {
		.area = area,
		.dev = dev,
		.op = op,
		.many = many,
	};
}

/* The host would refuse, or there is none: do as if it had. */
static void tmem_withhold(struct tmem_area *area, struct tmem_dev *dev,
			  unsigned long index)
{
	struct tmem_queue *q = tmem_area_queue(area, dev, index);
	unsigned long flags;

	spin_lock_irqsave(&q->lock, flags);
	tmem_give_up(area, q, index);
	spin_unlock_irqrestore(&q->lock, flags);
	if (unlikely(!list_empty(&area->kept)))
		tmem_forget_kept(area, index);
	if (tmem_area_pending(area))
		tmem_flush_later(dev, 0);
}

/* No store entered the ring, or there is no answer: forget the old data. */
static void tmem_store_failed(struct tmem_transfer *t)
{
	unsigned int i, count = t->slot ? t->slot->count : 0;

	for (i = 0; i < count; i++)
		tmem_withhold(t->area, t->dev,
			      le32_to_cpu(t->slot->out->entry[i].index));
	tmem_count_op(t->area->user, TMEM_STORES_FAILED, count);
}

/* Store one page with a request of its own. */
static int tmem_store_again(struct tmem_transfer *of, unsigned long index,
			    struct page *page)
{
	struct tmem_transfer t = {
		.area = of->area,
		.dev = of->dev,
		.op = VIRTIO_TMEM_OP_STORE,
	};
	u8 status;
	int err;

	err = tmem_transfer_page(&t, index, page, &status);
	if (!err)
		return tmem_store_result(t.area, status);
	tmem_withhold(t.area, t.dev, index);
	tmem_count_op(t.area->user, TMEM_STORES_FAILED, 1);
	return err;
}

static bool tmem_zero = true;
module_param_named(zero, tmem_zero, bool, 0644);
MODULE_PARM_DESC(zero, "Send no page of zeroes (on by default)");

static bool tmem_page_is_zero(struct page *page)
{
	void *data;
	bool zero;

	if (!READ_ONCE(tmem_zero))
		return false;
	data = kmap_local_page(page);
	zero = !memchr_inv(data, 0, PAGE_SIZE);
	kunmap_local(data);
	return zero;
}

/* Return: whether the page was stored as zeroes. */
static bool tmem_store_zero(struct tmem_area *area, struct tmem_dev *dev,
			    unsigned long index)
{
	struct tmem_queue *q = tmem_area_queue(area, dev, index);
	unsigned long flags;
	bool closed;

	spin_lock_irqsave(&q->lock, flags);
	closed = q->closed;
	if (!closed)
		tmem_put_zero(area, q, index);
	spin_unlock_irqrestore(&q->lock, flags);
	if (closed)
		return false;
	tmem_count_op(area->user, TMEM_STORES_ZERO, 1);
	if (tmem_area_pending(area))
		tmem_flush_later(dev, TMEM_FLUSH_MS);
	return true;
}

/* The request of one page is answered: free its slot, then look closer. */
static int tmem_store_answered_one(struct tmem_transfer *t)
{
	unsigned long index = le32_to_cpu(t->slot->out->entry[0].index);
	struct page *page = t->slot->page[0];
	u8 status = tmem_transfer_status(t, 0);
	int err;

	tmem_transfer_end(t);
	err = tmem_store_result(t->area, status);
	/* There may be more room than the host knows of */
	if (err == -ENOSPC && tmem_flush_for_room(t->area, t->dev))
		err = tmem_store_again(t, index, page);
	return err;
}

static int tmem_store_answered(struct tmem_transfer *t)
{
	struct tmem_slot *slot = t->slot;
	bool again = true;
	unsigned int i;
	int err = 0;

	if (slot->count == 1)
		return tmem_store_answered_one(t);
	for (i = 0; i < slot->count; i++) {
		int one = tmem_store_result(t->area,
					    tmem_transfer_status(t, i));

		if (one == -ENOSPC && again) {
			again = tmem_flush_for_room(t->area, t->dev);
			if (again)
				one = tmem_store_again(t,
						       le32_to_cpu(slot->out->entry[i].index),
						       slot->page[i]);
			again = again && !one;
		}
		if (one)
			err = one;
	}
	tmem_transfer_end(t);
	return err;
}

static void tmem_store_submit(struct tmem_io *io)
{
	struct tmem_transfer *t = &io->transfer;
	int err;

	if (!t->slot)
		return;
	err = tmem_transfer_submit(t);
	if (err) {
		tmem_store_failed(t);
		tmem_transfer_end(t);
	} else {
		err = tmem_store_answered(t);
		if (err)
			tmem_set_full(t->dev);
	}
	if (err)
		io->err = err;
}

/**
 * tmem_io_store() - store one page more
 * @io: begun for stores
 * @index: index of the page in the area
 * @page: the data; must not change before tmem_io_end()
 *
 * A refused page is offered again by the next caller: the swap device behind
 * frontswap, reclaim. For a short while after a refusal the host is not asked,
 * unless there is reason to think that it has room.
 */
void tmem_io_store(struct tmem_io *io, unsigned long index, struct page *page)
{
	struct tmem_transfer *t = &io->transfer;
	struct tmem_area *area = t->area;
	int err;

	if (index >= area->nr_pages) {
		io->err = -EINVAL;
		return;
	}
	if (!t->dev) {
		tmem_forget_kept(area, index);
		tmem_count_op(area->user, TMEM_STORES_FAILED, 1);
		io->err = -ENODEV;
		return;
	}
	if (tmem_page_is_zero(page) && tmem_store_zero(area, t->dev, index))
		return;
	if (tmem_is_withheld(t->dev)) {
		tmem_withhold(area, t->dev, index);
		tmem_count_op(area->user, TMEM_STORES_WITHHELD, 1);
		io->err = -ENOSPC;
		return;
	}
	if (tmem_stage_page(area, tmem_area_queue(area, t->dev, index), index,
			    page))
		return;
	if (!tmem_transfer_has_room(t, index))
		tmem_store_submit(io);
	err = tmem_transfer_add(t, index, page);
	if (err) {
		tmem_withhold(area, t->dev, index);
		tmem_count_op(area->user, TMEM_STORES_FAILED, 1);
		io->err = err;
	}
}

/*
 * The result without asking the host: 0 with the page, -ENOENT when there is
 * none, -EIO when it is lost; 1 when the host has it.
 */
static int tmem_load_here(struct tmem_area *area, struct tmem_dev *dev,
			  unsigned long index, struct page *page)
{
	struct tmem_queue *q = tmem_area_queue(area, dev, index);
	enum tmem_op_stat how;
	struct page *copy;
	unsigned long flags;
	int found = 0;

	spin_lock_irqsave(&q->lock, flags);
	switch (tmem_find(area, q, index, &copy)) {
	case TMEM_AT_STAGE:
		copy_highpage(page, copy);
		how = TMEM_LOADS_STAGED;
		break;
	case TMEM_AT_ZERO:
		clear_highpage(page);
		how = TMEM_LOADS_ZERO;
		break;
	case TMEM_AT_SAVED:
		copy_highpage(page, copy);
		how = TMEM_LOADS_SAVED;
		break;
	case TMEM_AT_LOST:
		found = -EIO;
		how = TMEM_LOADS_LOST;
		break;
	case TMEM_AT_NOWHERE:
		found = -ENOENT;
		how = TMEM_LOADS_ABSENT;
		break;
	default:
		found = 1;
		how = TMEM_LOADS_OK;
	}
	spin_unlock_irqrestore(&q->lock, flags);
	/* The device is being removed */
	if (found && unlikely(!list_empty(&area->kept)) &&
	    !tmem_load_kept(area, index, page)) {
		found = 0;
		how = TMEM_LOADS_STAGED;
	}
	if (found <= 0)
		tmem_count_op(area->user, how, 1);
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

static int tmem_load_failed(struct tmem_transfer *t, unsigned long index,
			    u8 status)
{
	switch (status) {
	case VIRTIO_TMEM_S_NOT_FOUND:
		tmem_count_op(t->area->user, TMEM_LOADS_LOST, 1);
		break;
	case VIRTIO_TMEM_S_IO_ERROR:
		tmem_count_op(t->area->user, TMEM_LOADS_IO_ERROR, 1);
		break;
	default:
		tmem_count_op(t->area->user, TMEM_LOADS_FAILED, 1);
	}
	tmem_report_lost(t->area, t->dev, index, status);
	return -EIO;
}

/*
 * The host did not load a page. It may have been given up or stored while the
 * request was on its way.
 */
static int tmem_load_again(struct tmem_transfer *of, unsigned long index,
			   struct page *page, u8 status)
{
	struct tmem_transfer t = {
		.area = of->area,
		.dev = of->dev,
		.op = VIRTIO_TMEM_OP_LOAD,
	};
	int err;

	if (status != VIRTIO_TMEM_S_NOT_FOUND)
		return tmem_load_failed(&t, index, status);
	err = tmem_load_here(t.area, t.dev, index, page);
	if (err <= 0)
		return err;
	if (tmem_transfer_page(&t, index, page, &status)) {
		tmem_count_op(t.area->user, TMEM_LOADS_FAILED, 1);
		return -EIO;
	}
	if (status != VIRTIO_TMEM_S_OK)
		return tmem_load_failed(&t, index, status);
	tmem_count_op(t.area->user, TMEM_LOADS_OK, 1);
	return 0;
}

static void tmem_loaded(struct tmem_io *io, unsigned long index,
			struct page *page, int err)
{
	if (err == -ENOENT && io->fill) {
		clear_highpage(page);
		err = 0;
	}
	if (!err)
		flush_dcache_page(page);
	else
		io->err = err;
	if (io->done)
		io->done(io, index, page, err);
}

static void tmem_load_answered(struct tmem_io *io, unsigned int i)
{
	struct tmem_transfer *t = &io->transfer;
	unsigned long index = le32_to_cpu(t->slot->out->entry[i].index);
	struct page *page = t->slot->page[i];
	u8 status = tmem_transfer_status(t, i);
	int err = 0;

	/* A task with the slot of one page does not wait for another */
	if (t->slot->count == 1)
		tmem_transfer_end(t);
	if (status == VIRTIO_TMEM_S_OK)
		tmem_count_op(t->area->user, TMEM_LOADS_OK, 1);
	else
		err = tmem_load_again(t, index, page, status);
	tmem_loaded(io, index, page, err);
}

static void tmem_load_submit(struct tmem_io *io)
{
	struct tmem_transfer *t = &io->transfer;
	unsigned int i, count;

	if (!t->slot)
		return;
	count = t->slot->count;
	if (tmem_transfer_submit(t)) {
		tmem_count_op(t->area->user, TMEM_LOADS_FAILED, count);
		for (i = 0; i < count; i++)
			tmem_loaded(io,
				    le32_to_cpu(t->slot->out->entry[i].index),
				    t->slot->page[i], -EIO);
	} else {
		for (i = 0; i < count; i++)
			tmem_load_answered(io, i);
	}
	tmem_transfer_end(t);
}

/**
 * tmem_io_load() - load one page more; the host keeps its copy
 * @io: begun for loads
 * @index: index of the page in the area
 * @page: where to; undefined before tmem_io_end(), and after it failed
 */
void tmem_io_load(struct tmem_io *io, unsigned long index, struct page *page)
{
	struct tmem_transfer *t = &io->transfer;
	int err;

	if (index >= t->area->nr_pages) {
		tmem_loaded(io, index, page, -EINVAL);
		return;
	}
	if (t->dev)
		err = tmem_load_here(t->area, t->dev, index, page);
	else
		err = tmem_load_kept(t->area, index, page);
	if (!t->dev)
		tmem_count_op(t->area->user, err ? TMEM_LOADS_FAILED :
			      TMEM_LOADS_STAGED, 1);
	if (err > 0) {
		if (!tmem_transfer_has_room(t, index))
			tmem_load_submit(io);
		err = tmem_transfer_add(t, index, page);
		if (!err)
			return;
		tmem_count_op(t->area->user, TMEM_LOADS_FAILED, 1);
	}
	tmem_loaded(io, index, page, err);
}

/**
 * tmem_io_end() - wait for all pages
 * @io: begun
 *
 * May sleep.
 *
 * Return: 0; else an error of one of the pages. Of stores: when one fails, the
 * host's page for its index is dropped. Of loads: -ENOENT when no data was
 * accepted for an index, or it was given up; -EIO when there was data and it
 * cannot be loaded.
 */
int tmem_io_end(struct tmem_io *io)
	__releases(&tmem_srcu)
{
	if (io->transfer.op == VIRTIO_TMEM_OP_STORE)
		tmem_store_submit(io);
	else
		tmem_load_submit(io);
	srcu_read_unlock(&tmem_srcu, io->srcu);
	return io->err;
}

/* Store one page; the result is that of tmem_io_end(). */
int tmem_store(struct tmem_area *area, unsigned long index, struct page *page)
{
	struct tmem_io io;

	tmem_io_begin(&io, area, VIRTIO_TMEM_OP_STORE, false);
	tmem_io_store(&io, index, page);
	return tmem_io_end(&io);
}

/* Load one page; the result is that of tmem_io_end(). */
int tmem_load(struct tmem_area *area, unsigned long index, struct page *page)
{
	struct tmem_io io;

	tmem_io_begin(&io, area, VIRTIO_TMEM_OP_LOAD, false);
	tmem_io_load(&io, index, page);
	return tmem_io_end(&io);
}
