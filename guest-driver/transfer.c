// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: requests that move pages, and waiting for
 * their answers.
 *
 * All stores and invalidates of a page go through one queue, and in the order
 * of its ring, so that no invalidate overtakes the store which follows it. A
 * load may go through another: only a page that is at the host is loaded, so
 * its store was answered.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitops.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>

#include "tmem.h"

/* A load waits for others only when the worker does not keep up */
#define TMEM_RIDE_LOAD		1024

static unsigned int tmem_max_pages = VIRTIO_TMEM_MAX_BATCH;
module_param_named(max_pages, tmem_max_pages, uint, 0644);
MODULE_PARM_DESC(max_pages, "Most pages of a bio or a readahead in one request (default: 64)");

/* The ring for a page */
static struct tmem_queue *tmem_transfer_ring(struct tmem_transfer *t,
					     unsigned long index)
{
	struct tmem_queue *q = tmem_area_queue(t->area, t->dev, index);

	return t->op == VIRTIO_TMEM_OP_STORE ? q : q->loads;
}

/* Whether one more page fits into the request; it fits into an empty one. */
bool tmem_transfer_has_room(struct tmem_transfer *t, unsigned long index)
{
	struct tmem_slot *slot = t->slot;

	if (!slot)
		return true;
	return t->ring == tmem_transfer_ring(t, index) &&
	       slot->kind == TMEM_SLOT_PAGES &&
	       slot->count < min(t->dev->max_batch, READ_ONCE(tmem_max_pages));
}

/**
 * tmem_transfer_add() - add a page to a request
 * @t: request; area, device, operation and kind are set
 * @index: index of the page in the area
 * @page: the data
 *
 * May sleep until there is a slot, for the first page.
 *
 * Return: 0, or -EIO when the device was given up.
 */
int tmem_transfer_add(struct tmem_transfer *t, unsigned long index,
		      struct page *page)
{
	if (!t->slot) {
		enum tmem_slot_kind kind;

		t->ring = tmem_transfer_ring(t, index);
		kind = t->many ? t->ring->pages_kind : TMEM_SLOT_PAGE;
		t->slot = tmem_slot_get(t->ring, kind);
		if (!t->slot)
			return -EIO;
		tmem_fill_req(t->slot, t->area, t->dev, t->op);
	}
	t->slot->page[t->slot->nr_pages++] = page;
	tmem_add_entry(t->slot, index);
	return 0;
}

/* Stores enter the ring; lock held. */
static int tmem_transfer_begin(struct tmem_transfer *t)
{
	struct tmem_slot *slot = t->slot;
	unsigned int i;
	int err;

	for (i = 0; i < slot->count; i++) {
		unsigned long index = le32_to_cpu(slot->out->entry[i].index);

		err = tmem_begin_store(t->area, t->ring, index,
				       t->saved ? slot->page[i] : NULL);
		if (err)
			return err;
	}
	return 0;
}

/**
 * tmem_transfer_submit() - send a request and wait for the answer
 * @t: request with a page or more
 *
 * May sleep, as long as the host takes and the device has not failed.
 *
 * Return: 0 when there is an answer, see tmem_transfer_status(); -ENOENT when
 * the saved page was given up; -EIO when there was no answer, and the host does
 * not touch the pages any more.
 */
int tmem_transfer_submit(struct tmem_transfer *t)
{
	bool store = t->op == VIRTIO_TMEM_OP_STORE;
	struct tmem_queue *q = t->ring;
	unsigned long flags;
	bool kick = false;
	int err = 0;

	spin_lock_irqsave(&q->lock, flags);
	if (q->closed)
		err = -EIO;
	else if (store)
		err = tmem_transfer_begin(t);
	if (!err) {
		if (q->index < q->dev->nr_queues)
			tmem_ride(t->area, q,
				  store ? TMEM_RIDE_STORE : TMEM_RIDE_LOAD);
		err = tmem_queue_add(q, t->slot);
	}
	if (!err)
		kick = virtqueue_kick_prepare(q->vq);
	spin_unlock_irqrestore(&q->lock, flags);

	if (err)
		return err;
	return tmem_wait_slot(q, t->slot, kick, TMEM_KICKS_PAGE);
}

/* The host's status of page @i of a request that was answered. */
u8 tmem_transfer_status(struct tmem_transfer *t, unsigned int i)
{
	struct tmem_slot *slot = t->slot;
	u8 status = tmem_slot_status(slot, i);

	/* Bytes behind a page that was not loaded are not counted */
	if (t->op != VIRTIO_TMEM_OP_LOAD || status != VIRTIO_TMEM_S_OK || i)
		return status;
	if (slot->len >= struct_size(slot->in, status, slot->count) + PAGE_SIZE)
		return status;
	tmem_count(TMEM_BAD_ANSWERS);
	return VIRTIO_TMEM_S_INVALID;
}

/* The request is over. The next page begins another one. */
void tmem_transfer_end(struct tmem_transfer *t)
{
	if (t->slot)
		tmem_slot_put(t->ring, t->slot);
	t->slot = NULL;
}

/**
 * tmem_transfer_page() - move one page
 * @t: request without a page
 * @index: index of the page in the area
 * @page: the data
 * @status: set to the status from the host
 *
 * Return: as tmem_transfer_submit(), with @status set when it is 0.
 */
int tmem_transfer_page(struct tmem_transfer *t, unsigned long index,
		       struct page *page, u8 *status)
{
	int err = tmem_transfer_add(t, index, page);

	if (!err)
		err = tmem_transfer_submit(t);
	if (!err)
		*status = tmem_transfer_status(t, 0);
	tmem_transfer_end(t);
	return err;
}
