// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: requests about pools and objects.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include "tmem.h"

/**
 * tmem_control() - a request without entries, on the first queue for loads
 * @dev: device
 * @op: VIRTIO_TMEM_OP_
 * @pool: pool or flags
 * @object: three words, or NULL for zeroes
 * @new_pool: where to put the id of a new pool, or NULL
 *
 * Return: 0, -EIO when there is no answer, -EREMOTEIO when the host refused.
 */
int tmem_control(struct tmem_dev *dev, u16 op, u32 pool, const u64 *object,
		 u32 *new_pool)
{
	struct tmem_queue *q = dev->queues[0].loads;
	struct tmem_slot *slot;
	unsigned long flags;
	unsigned int i;
	bool kick;
	u8 status;
	int err;

	slot = tmem_slot_get(q, TMEM_SLOT_BATCH);
	if (!slot)
		return -EIO;
	slot->out->req.op = cpu_to_le16(op);
	slot->out->req.pool = cpu_to_le32(pool);
	for (i = 0; i < ARRAY_SIZE(slot->out->req.object); i++)
		slot->out->req.object[i] = cpu_to_le64(object ? object[i] : 0);

	spin_lock_irqsave(&q->lock, flags);
	err = tmem_queue_add(q, slot);
	kick = !err && virtqueue_kick_prepare(q->vq);
	spin_unlock_irqrestore(&q->lock, flags);
	if (!err)
		err = tmem_wait_slot(q, slot, kick, TMEM_KICKS_CONTROL);
	if (!err) {
		status = tmem_slot_status(slot, 0);
		if (status == VIRTIO_TMEM_S_OK) {
			if (new_pool)
				*new_pool = le32_to_cpu(slot->in->resp.pool);
		} else {
			dev_warn(&dev->vdev->dev,
				 "host refused operation %u: status %u\n",
				 op, status);
			err = -EREMOTEIO;
		}
	}
	tmem_slot_put(q, slot);
	return err;
}

int tmem_create_pool(struct tmem_dev *dev, enum tmem_user user)
{
	return tmem_control(dev, VIRTIO_TMEM_OP_CREATE_POOL, 0, NULL,
			    &dev->pool[user]);
}

void tmem_destroy_pool(struct tmem_dev *dev, enum tmem_user user)
{
	tmem_control(dev, VIRTIO_TMEM_OP_DESTROY_POOL, dev->pool[user], NULL,
		     NULL);
}

/* Pools for the users that had some: all of them, or the device is given up. */
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
