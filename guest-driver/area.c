// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: areas.
 *
 * An area is one object of a persistent pool: a swap area or the swap disk.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitops.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "tmem.h"

/* Blocks whose pages are lost at a time with interrupts off */
#define TMEM_LOSE_BLOCKS	1024

struct tmem_queue *tmem_area_queue(struct tmem_area *area, struct tmem_dev *dev,
				   unsigned long index)
{
	return &dev->queues[(index >> TMEM_BLOCK_SHIFT) % area->nr_queues];
}

void tmem_set_present(struct tmem_area *area, struct tmem_queue *q,
		      unsigned long index)
{
	if (!__test_and_set_bit(index, area->present))
		area->queue[q->index].pages++;
}

bool tmem_clear_present(struct tmem_area *area, struct tmem_queue *q,
			unsigned long index)
{
	if (!__test_and_clear_bit(index, area->present))
		return false;
	area->queue[q->index].pages--;
	return true;
}

bool tmem_is_lost(struct tmem_area *area, unsigned long index)
{
	unsigned long *lost = READ_ONCE(area->lost);

	return lost && test_bit(index, lost);
}

void tmem_clear_lost(struct tmem_area *area, unsigned long index)
{
	unsigned long *lost = READ_ONCE(area->lost);

	if (lost)
		__clear_bit(index, lost);
}

/* Drop what is saved of a page; the lock of its queue is held. */
bool tmem_clear_saved(struct tmem_area *area, unsigned long index)
{
	struct page *page;

	if (xa_empty(&area->saved))
		return false;
	xa_lock(&area->saved);
	page = __xa_erase(&area->saved, index);
	xa_unlock(&area->saved);
	if (!page)
		return false;
	put_page(page);
	return true;
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

/* Pages the host has to keep; roughly, where others change it. */
unsigned long tmem_area_pages(struct tmem_area *area)
{
	unsigned long pages = 0;
	unsigned int i;

	for (i = 0; i < area->nr_queues; i++)
		pages += READ_ONCE(area->queue[i].pages);
	return pages;
}

/* The same of all areas of a device */
unsigned long tmem_dev_pages(struct tmem_dev *dev)
{
	struct tmem_area *area;
	unsigned long pages = 0;

	mutex_lock(&dev->lock);
	list_for_each_entry(area, &dev->areas, list)
		pages += tmem_area_pages(area);
	mutex_unlock(&dev->lock);
	return pages;
}

static void tmem_area_free(struct tmem_area *area)
{
	unsigned long index;
	struct page *page;
	unsigned int i;

	xa_for_each(&area->saved, index, page)
		put_page(page);
	xa_destroy(&area->saved);
	if (area->queue) {
		for (i = 0; i < area->nr_queues; i++)
			kvfree(area->queue[i].blocks);
	}
	kfree(area->queue);
	kvfree(area->lost);
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
	xa_init_flags(&area->saved, XA_FLAGS_LOCK_IRQ);
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

		/* Batches that no task waits for may still be at the host */
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
 * @area: area; the caller ensures that it is not used
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
		 * Under this lock no worker has a batch at the host. A batch
		 * that shared a doorbell is executed before later requests of
		 * its queue.
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
 * The device is removed: its areas stay with their users, and fail. The lock of
 * the device is held, its queues are closed.
 */
void tmem_areas_detach(struct tmem_dev *dev)
{
	struct tmem_area *area, *next;

	list_for_each_entry_safe(area, next, &dev->areas, list)
		tmem_area_detach(area, dev);
}

/* Make room for bits of lost pages. Does not start I/O, nor wait for it. */
int tmem_area_may_lose(struct tmem_area *area)
{
	unsigned long *lost;
	unsigned int noio;

	if (area->lost)
		return 0;
	noio = memalloc_noio_save();
	lost = kvcalloc(BITS_TO_LONGS(area->nr_pages), sizeof(long),
			GFP_KERNEL | __GFP_NOWARN);
	memalloc_noio_restore(noio);
	if (!lost)
		return -ENOMEM;
	/* A reader of the bits sees them clear; the device's lock is held */
	smp_store_release(&area->lost, lost);
	return 0;
}

/* The block at @first: its present pages are lost, nothing is pending. */
static void tmem_area_lose_block(struct tmem_area *area,
				 struct tmem_pending *p, unsigned long first)
{
	unsigned int bits = min(TMEM_BLOCK_PAGES, area->nr_pages - first);
	unsigned long *present = area->present + BIT_WORD(first);
	unsigned long *pending = area->pending + BIT_WORD(first);
	unsigned long *lost;

	if (area->lost) {
		lost = area->lost + BIT_WORD(first);
		bitmap_or(lost, lost, present, bits);
	}
	p->pages -= bitmap_weight(present, bits);
	p->count -= bitmap_weight(pending, bits);
	bitmap_zero(present, bits);
	bitmap_zero(pending, bits);
}

static void tmem_area_lose_queue(struct tmem_area *area, struct tmem_queue *q)
{
	unsigned long step = (unsigned long)area->nr_queues * TMEM_BLOCK_PAGES;
	unsigned long first = q->index * TMEM_BLOCK_PAGES;
	unsigned long flags;
	unsigned int n = 0;

	spin_lock_irqsave(&q->lock, flags);
	for (; first < area->nr_pages; first += step) {
		tmem_area_lose_block(area, &area->queue[q->index], first);
		if (++n % TMEM_LOSE_BLOCKS)
			continue;
		spin_unlock_irqrestore(&q->lock, flags);
		cond_resched();
		spin_lock_irqsave(&q->lock, flags);
	}
	spin_unlock_irqrestore(&q->lock, flags);
}

/**
 * tmem_areas_lose() - mark the pages of a device as lost
 * @dev: device; nothing is stored, and no answer is awaited
 *
 * A page at the host is lost from now on, until its owner gives it up.
 *
 * Return: 0, or -ENOMEM and some areas are as they were.
 */
int tmem_areas_lose(struct tmem_dev *dev)
{
	struct tmem_area *area;
	unsigned int i;
	int err = 0;

	mutex_lock(&dev->lock);
	list_for_each_entry(area, &dev->areas, list) {
		if (tmem_area_pages(area))
			err = tmem_area_may_lose(area);
		if (err)
			break;
		for (i = 0; i < area->nr_queues; i++)
			tmem_area_lose_queue(area, &dev->queues[i]);
	}
	mutex_unlock(&dev->lock);
	return err;
}
