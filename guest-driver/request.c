// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: requests about pages, and the changes by
 * their answers.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitops.h>

#include "tmem.h"

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
		index = le32_to_cpu(slot->out->entry[0].index);
		if (tmem_slot_status(slot, 0) != VIRTIO_TMEM_S_OK)
			tmem_clear_present(area, q, index);
		else if (!test_bit(index, area->pending))
			tmem_set_present(area, q, index);
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
		/* There is room now */
		WRITE_ONCE(q->dev->full, false);
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
