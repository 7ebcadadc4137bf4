// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: areas.
 *
 * An area is one object of a persistent pool: a swap area or the swap disk. All
 * operations on a page go through one queue, and in the order of its ring, so
 * that no invalidate overtakes the store which follows it.
 *
 * Pages are given up under spinlocks of the swap code, often many at once and
 * often to be stored again soon. So giving up sets a bit, and no more. The next
 * requests on the queue take the keys along in their doorbell, and a worker
 * sends what is left a little later. A store to the key clears the bit: it
 * replaces the old data, there is nothing left to give up.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitops.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "tmem.h"

/* With that many to send, a batch rides with the next store or load */
#define TMEM_RIDE_MIN		16
/* With that many, the worker does not wait any longer */
#define TMEM_HURRY		1024
/* How long a page that was given up may stay at the host */
#define TMEM_FLUSH_MS		20

static struct tmem_queue *tmem_area_queue(struct tmem_area *area,
					  struct tmem_dev *dev,
					  unsigned long index)
{
	return &dev->queues[(index >> TMEM_BLOCK_SHIFT) % area->nr_queues];
}

static void tmem_fill_req(struct tmem_slot *slot, struct tmem_area *area,
			  struct tmem_dev *dev, u16 op)
{
	struct virtio_tmem_req *req = &slot->out->req;
	unsigned int i;

	req->op = cpu_to_le16(op);
	req->pool = cpu_to_le32(dev->pool[area->user]);
	for (i = 0; i < ARRAY_SIZE(req->object); i++)
		req->object[i] = cpu_to_le64(area->object[i]);
	slot->area = area;
}

static void tmem_add_entry(struct tmem_slot *slot, unsigned long index)
{
	struct virtio_tmem_entry *entry = &slot->out->entry[slot->count++];

	entry->index = cpu_to_le32(index);
	entry->reserved = 0;
}

static void tmem_set_present(struct tmem_area *area, struct tmem_queue *q,
			     unsigned long index)
{
	if (!__test_and_set_bit(index, area->present))
		area->queue[q->index].pages++;
}

static bool tmem_clear_present(struct tmem_area *area, struct tmem_queue *q,
			       unsigned long index)
{
	if (!__test_and_clear_bit(index, area->present))
		return false;
	area->queue[q->index].pages--;
	return true;
}

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

	lockdep_assert_held(&q->lock);

	while (slot->count < max) {
		b = find_next_bit(p->blocks, nr_bits, b);
		if (b >= nr_bits) {
			b = find_first_bit(p->blocks, nr_bits);
			if (WARN_ON_ONCE(b >= nr_bits))
				break;
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

/*
 * Put a batch into the ring ahead of a request that is about to follow. Nobody
 * waits for its answer.
 */
static void tmem_ride(struct tmem_area *area, struct tmem_queue *q)
{
	struct tmem_slot *slot;

	lockdep_assert_held(&q->lock);

	if (area->queue[q->index].count < TMEM_RIDE_MIN)
		return;
	slot = tmem_slot_tryget(q, TMEM_SLOT_BATCH);
	if (!slot)
		return;
	tmem_fill_req(slot, area, q->dev, VIRTIO_TMEM_OP_INVALIDATE_PAGE);
	tmem_take_pending(area, q, slot);
	slot->async = true;
	/* The caller finds the same error, and the device broken */
	if (tmem_queue_add(q, slot, NULL))
		return;
	tmem_count_op(area->user, TMEM_INVALIDATE_BATCHES_RODE, 1);
}

/* An answer concerns this area. In the order of the ring, lock held. */
void tmem_area_complete(struct tmem_queue *q, struct tmem_slot *slot)
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
		break;
	}
}

/* Move one page. 0 with the status of the host, or an error. May sleep. */
static int tmem_transfer(struct tmem_area *area, struct tmem_dev *dev, u16 op,
			 unsigned long index, struct page *page, u8 *status)
{
	struct tmem_queue *q = tmem_area_queue(area, dev, index);
	struct tmem_pending *p = &area->queue[q->index];
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
	if (q->down) {
		err = -EIO;
	} else if (op == VIRTIO_TMEM_OP_STORE) {
		if (__test_and_clear_bit(index, area->pending)) {
			p->count--;
			tmem_count_op(area->user, TMEM_INVALIDATES_OVERTAKEN,
				      1);
		}
	} else if (!test_bit(index, area->present)) {
		err = -ENOENT;
	}
	if (!err) {
		tmem_ride(area, q);
		err = tmem_queue_add(q, slot, page);
	}
	if (!err)
		kick = virtqueue_kick_prepare(q->vq);
	spin_unlock_irqrestore(&q->lock, flags);

	if (!err)
		err = tmem_queue_wait(q, slot, kick, TMEM_KICKS_PAGE);
	if (!err) {
		*status = tmem_slot_status(slot, 0);
		if (op == VIRTIO_TMEM_OP_LOAD && *status == VIRTIO_TMEM_S_OK &&
		    slot->len < struct_size(slot->in, status, 1) + PAGE_SIZE) {
			tmem_count(TMEM_BAD_ANSWERS);
			*status = VIRTIO_TMEM_S_INVALID;
		}
	}
	tmem_slot_put(q, slot);
	return err;
}

/* Invalidates still to send; roughly, where others change it. */
unsigned long tmem_area_pending(struct tmem_area *area)
{
	unsigned long pending = 0;
	unsigned int i;

	for (i = 0; i < area->nr_queues; i++)
		pending += READ_ONCE(area->queue[i].count);
	return pending;
}

/**
 * tmem_store() - hand a page over to the host
 * @area: area
 * @index: index of the page in the area
 * @page: the data
 *
 * When it fails, what the host had for this index is gone. May sleep.
 *
 * Return: 0 when the host keeps the page, else an error.
 */
int tmem_store(struct tmem_area *area, unsigned long index, struct page *page)
{
	struct tmem_dev *dev;
	int err = -ENODEV;
	u8 status;
	int srcu;

	if (index >= area->nr_pages)
		return -EINVAL;

	srcu = srcu_read_lock(&tmem_srcu);
	dev = srcu_dereference(area->dev, &tmem_srcu);
	if (dev)
		err = tmem_transfer(area, dev, VIRTIO_TMEM_OP_STORE, index,
				    page, &status);
	if (err) {
		tmem_count_op(area->user, TMEM_STORES_FAILED, 1);
		goto out;
	}
	switch (status) {
	case VIRTIO_TMEM_S_OK:
		tmem_count_op(area->user, TMEM_STORES_OK, 1);
		break;
	case VIRTIO_TMEM_S_NO_SPACE:
		tmem_count_op(area->user, TMEM_STORES_NO_SPACE, 1);
		/* There may be more room than the host knows of */
		if (tmem_area_pending(area))
			mod_delayed_work(dev->wq, &dev->flush_work, 0);
		err = -ENOSPC;
		break;
	case VIRTIO_TMEM_S_FROZEN:
		tmem_count_op(area->user, TMEM_STORES_FROZEN, 1);
		err = -EBUSY;
		break;
	case VIRTIO_TMEM_S_NO_MEMORY:
		tmem_count_op(area->user, TMEM_STORES_NO_MEMORY, 1);
		err = -ENOMEM;
		break;
	default:
		tmem_count_op(area->user, TMEM_STORES_REFUSED_OTHER, 1);
		err = -EREMOTEIO;
	}
out:
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
 * up; -EIO when there was data and it cannot be had: what is in @page is then
 * undefined.
 */
int tmem_load(struct tmem_area *area, unsigned long index, struct page *page)
{
	struct tmem_dev *dev;
	int err = -ENODEV;
	u8 status;
	int srcu;

	if (index >= area->nr_pages)
		return -EINVAL;

	srcu = srcu_read_lock(&tmem_srcu);
	dev = srcu_dereference(area->dev, &tmem_srcu);
	if (dev)
		err = tmem_transfer(area, dev, VIRTIO_TMEM_OP_LOAD, index, page,
				    &status);
	srcu_read_unlock(&tmem_srcu, srcu);
	if (err == -ENOENT) {
		tmem_count_op(area->user, TMEM_LOADS_ABSENT, 1);
		return err;
	}
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
		return -EIO;
	case VIRTIO_TMEM_S_IO_ERROR:
		tmem_count_op(area->user, TMEM_LOADS_IO_ERROR, 1);
		return -EIO;
	default:
		tmem_count_op(area->user, TMEM_LOADS_FAILED, 1);
		return -EIO;
	}
}

/**
 * tmem_invalidate() - give a page up
 * @area: area
 * @index: index of the page in the area
 *
 * A later tmem_load() says -ENOENT. The host hears of it later. In any context;
 * it neither sleeps nor rings the doorbell.
 */
void tmem_invalidate(struct tmem_area *area, unsigned long index)
{
	struct tmem_pending *p;
	struct tmem_queue *q;
	struct tmem_dev *dev;
	unsigned long flags;
	unsigned long count = 0;
	int srcu;

	if (index >= area->nr_pages)
		return;

	srcu = srcu_read_lock(&tmem_srcu);
	dev = srcu_dereference(area->dev, &tmem_srcu);
	if (!dev)
		goto out;
	q = tmem_area_queue(area, dev, index);
	p = &area->queue[q->index];

	spin_lock_irqsave(&q->lock, flags);
	if (tmem_clear_present(area, q, index)) {
		__set_bit(index, area->pending);
		__set_bit((index >> TMEM_BLOCK_SHIFT) / area->nr_queues,
			  p->blocks);
		count = ++p->count;
	}
	spin_unlock_irqrestore(&q->lock, flags);

	if (!count)
		goto out;
	tmem_count_op(area->user, TMEM_INVALIDATES, 1);
	if (READ_ONCE(q->down))
		goto out;
	if (count == TMEM_HURRY)
		mod_delayed_work(dev->wq, &dev->flush_work, 0);
	else
		queue_delayed_work(dev->wq, &dev->flush_work,
				   msecs_to_jiffies(TMEM_FLUSH_MS));
out:
	srcu_read_unlock(&tmem_srcu, srcu);
}

/* Send what is pending for one queue. */
static void tmem_area_flush(struct tmem_area *area, struct tmem_queue *q)
{
	struct tmem_slot *slot;
	unsigned long flags;
	bool kick, more;
	int err;

	do {
		/* A look without the lock: what comes now queues the work */
		if (!READ_ONCE(area->queue[q->index].count))
			return;
		slot = tmem_slot_get(q, TMEM_SLOT_BATCH);
		if (!slot)
			return;
		tmem_fill_req(slot, area, q->dev,
			      VIRTIO_TMEM_OP_INVALIDATE_PAGE);
		spin_lock_irqsave(&q->lock, flags);
		tmem_take_pending(area, q, slot);
		more = slot->count;
		err = more ? tmem_queue_add(q, slot, NULL) : 0;
		kick = more && !err && virtqueue_kick_prepare(q->vq);
		spin_unlock_irqrestore(&q->lock, flags);
		if (more && !err)
			err = tmem_queue_wait(q, slot, kick,
					      TMEM_KICKS_INVALIDATE);
		tmem_slot_put(q, slot);
	} while (more && !err);
}

/* The work of tmem_dev.flush_work */
void tmem_areas_flush(struct work_struct *work)
{
	struct tmem_dev *dev = container_of(to_delayed_work(work),
					    struct tmem_dev, flush_work);
	struct tmem_area *area;
	unsigned int i;

	mutex_lock(&dev->lock);
	list_for_each_entry(area, &dev->areas, list) {
		for (i = 0; i < area->nr_queues; i++)
			tmem_area_flush(area, &dev->queues[i]);
	}
	mutex_unlock(&dev->lock);
}

static void tmem_area_free(struct tmem_area *area)
{
	unsigned int i;

	if (area->queue) {
		for (i = 0; i < area->nr_queues; i++)
			kvfree(area->queue[i].blocks);
	}
	kfree(area->queue);
	kvfree(area->pending);
	kvfree(area->present);
	kfree(area);
}

/**
 * tmem_area_create() - make an object of a pool ready for use
 * @dev: device; has a pool for this user
 * @user: who
 * @object: first word of the object
 * @nr_pages: how many pages the area has
 *
 * May sleep and allocate.
 *
 * Return: the area, or NULL when there is no memory for it.
 */
struct tmem_area *tmem_area_create(struct tmem_dev *dev, enum tmem_user user,
				   u64 object, unsigned long nr_pages)
{
	unsigned long nr_bits;
	struct tmem_area *area;
	unsigned int i;

	/* An index has 32 bits */
	if (!nr_pages || nr_pages > 1UL << 32)
		return NULL;
	area = kzalloc(sizeof(*area), GFP_KERNEL);
	if (!area)
		return NULL;
	area->user = user;
	area->object[0] = object;
	area->nr_pages = nr_pages;
	area->nr_queues = dev->nr_queues;
	area->present = kvcalloc(BITS_TO_LONGS(nr_pages), sizeof(long),
				 GFP_KERNEL);
	area->pending = kvcalloc(BITS_TO_LONGS(nr_pages), sizeof(long),
				 GFP_KERNEL);
	area->queue = kcalloc(area->nr_queues, sizeof(*area->queue),
			      GFP_KERNEL);
	if (!area->present || !area->pending || !area->queue)
		goto free;
	nr_bits = DIV_ROUND_UP(DIV_ROUND_UP(nr_pages, TMEM_BLOCK_PAGES),
			       area->nr_queues);
	for (i = 0; i < area->nr_queues; i++) {
		area->queue[i].blocks = kvcalloc(BITS_TO_LONGS(nr_bits),
						 sizeof(long), GFP_KERNEL);
		if (!area->queue[i].blocks)
			goto free;
	}

	mutex_lock(&dev->lock);
	list_add_tail(&area->list, &dev->areas);
	mutex_unlock(&dev->lock);
	rcu_assign_pointer(area->dev, dev);
	return area;

free:
	tmem_area_free(area);
	return NULL;
}

/* Take the area off its device; the lock of the device is held. */
static void tmem_area_detach(struct tmem_area *area, struct tmem_dev *dev)
{
	unsigned long flags;
	unsigned int i, j;

	lockdep_assert_held(&dev->lock);

	list_del_init(&area->list);
	for (i = 0; i < area->nr_queues; i++) {
		struct tmem_queue *q = &dev->queues[i];

		/* Batches which nobody waits for may still be at the host */
		spin_lock_irqsave(&q->lock, flags);
		for (j = 0; j < q->nr_slots; j++) {
			if (q->slots[j]->area == area)
				q->slots[j]->area = NULL;
		}
		spin_unlock_irqrestore(&q->lock, flags);
	}
	RCU_INIT_POINTER(area->dev, NULL);
}

/**
 * tmem_area_destroy() - give all pages of an area up, and the area
 * @area: area; the caller sees to it that nobody uses it
 *
 * May sleep.
 */
void tmem_area_destroy(struct tmem_area *area)
{
	struct tmem_dev *dev;
	int srcu;

	srcu = srcu_read_lock(&tmem_srcu);
	dev = srcu_dereference(area->dev, &tmem_srcu);
	if (dev) {
		/*
		 * Under this lock no worker has a batch at the host. One that
		 * rode along is executed before what its queue gets next.
		 */
		mutex_lock(&dev->lock);
		if (!tmem_control(dev, VIRTIO_TMEM_OP_INVALIDATE_OBJECT,
				  dev->pool[area->user], area->object, NULL))
			tmem_count_op(area->user, TMEM_OBJECT_INVALIDATES, 1);
		tmem_area_detach(area, dev);
		mutex_unlock(&dev->lock);
	}
	srcu_read_unlock(&tmem_srcu, srcu);
	tmem_area_free(area);
}

/*
 * The device goes: its areas stay with their users, and fail. The lock of the
 * device is held, its queues are down.
 */
void tmem_areas_detach(struct tmem_dev *dev)
{
	struct tmem_area *area, *next;

	list_for_each_entry_safe(area, next, &dev->areas, list)
		tmem_area_detach(area, dev);
}

/*
 * The device lost its pools while they were empty: nothing is pending. Nobody
 * uses the queues now.
 */
void tmem_areas_forget(struct tmem_dev *dev)
{
	struct tmem_area *area;
	unsigned int i;

	mutex_lock(&dev->lock);
	list_for_each_entry(area, &dev->areas, list) {
		memset(area->pending, 0,
		       BITS_TO_LONGS(area->nr_pages) * sizeof(long));
		/* Bits of blocks without pending pages do no harm */
		for (i = 0; i < area->nr_queues; i++)
			area->queue[i].count = 0;
	}
	mutex_unlock(&dev->lock);
}

/* Pages the host has to keep; roughly, where others change it. */
unsigned long tmem_area_pages(struct tmem_area *area)
{
	unsigned long pages = 0;
	unsigned int i;

	for (i = 0; i < area->nr_queues; i++)
		pages += READ_ONCE(area->queue[i].pages);
	return pages;
}
