// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: requests about pages, and the changes by
 * their answers.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/jiffies.h>

#include "tmem.h"

/* How long the host is not asked again after it refused a page */
#define TMEM_FULL_MS		10

/* The host refused a page. */
void tmem_set_full(struct tmem_dev *dev)
{
	WRITE_ONCE(dev->full_until, jiffies + msecs_to_jiffies(TMEM_FULL_MS));
	WRITE_ONCE(dev->stuck_until, jiffies + msecs_to_jiffies(TMEM_STUCK_MS));
	WRITE_ONCE(dev->full, true);
}

/* It may take pages now. */
void tmem_has_room(struct tmem_dev *dev)
{
	WRITE_ONCE(dev->full, false);
	WRITE_ONCE(dev->stuck_until, jiffies);
}

/* An answer concerns an area. In the order of the ring, lock held. */
static void tmem_complete(struct tmem_queue *q, struct tmem_slot *slot)
{
	struct tmem_area *area = slot->area;
	unsigned int op = le16_to_cpu(slot->out->req.op);
	unsigned int i, failed = 0;
	unsigned long index;

	lockdep_assert_held(&q->lock);

	switch (op) {
	case VIRTIO_TMEM_OP_STORE:
		for (i = 0; i < slot->count; i++) {
			index = le32_to_cpu(slot->out->entry[i].index);
			tmem_end_store(area, q, index,
				       tmem_slot_status(slot, i) ==
				       VIRTIO_TMEM_S_OK);
		}
		break;
	case VIRTIO_TMEM_OP_INVALIDATE_PAGE:
		for (i = 0; i < slot->count; i++) {
			index = le32_to_cpu(slot->out->entry[i].index);
			tmem_clear_present(area, q, index);
			if (tmem_slot_status(slot, i) != VIRTIO_TMEM_S_OK)
				failed++;
		}
		tmem_count_op(area->user, TMEM_INVALIDATE_BATCHES, 1);
		tmem_count_op(area->user, TMEM_INVALIDATES_SENT, slot->count);
		tmem_count_op(area->user, TMEM_INVALIDATES_FAILED, failed);
		tmem_has_room(q->dev);
		break;
	}
}

void tmem_fill_req(struct tmem_slot *slot, struct tmem_area *area,
		   struct tmem_dev *dev, u16 op)
{
	struct virtio_tmem_req *req = &slot->out->req;
	unsigned int i;

	req->op = cpu_to_le16(op);
	req->pool = cpu_to_le32(dev->pool[area->user]);
	for (i = 0; i < ARRAY_SIZE(req->object); i++)
		req->object[i] = cpu_to_le64(area->object[i]);
	slot->complete = tmem_complete;
	slot->area = area;
}

void tmem_add_entry(struct tmem_slot *slot, unsigned long index)
{
	struct virtio_tmem_entry *entry = &slot->out->entry[slot->count++];

	entry->index = cpu_to_le32(index);
	entry->reserved = 0;
}

/* Count the host's answer to a store, and turn it into an error. */
int tmem_store_result(struct tmem_area *area, u8 status)
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
