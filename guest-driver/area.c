// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: areas.
 *
 * An area is one object of a persistent pool: a swap area or the swap disk.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitops.h>
#include <linux/highmem.h>
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

	spin_lock(&dev->list_lock);
	list_for_each_entry(area, &dev->areas, list)
		pages += tmem_area_pages(area);
	spin_unlock(&dev->list_lock);
	return pages;
}

/* The device is removed: the staging page that has the page, or NULL. */
static struct tmem_staged *tmem_find_kept(struct tmem_area *area,
					  unsigned long index)
{
	struct tmem_staged *staged;

	lockdep_assert_held(&area->kept_lock);

	list_for_each_entry(staged, &area->kept, list) {
		if (staged->index == index)
			return staged;
	}
	return NULL;
}

/* Give up what the guest has of a page of a device that is removed. */
void tmem_forget_kept(struct tmem_area *area, unsigned long index)
{
	struct tmem_staged *staged;
	unsigned long flags;

	spin_lock_irqsave(&area->kept_lock, flags);
	clear_bit(index, area->zero);
	tmem_clear_saved(area, index);
	staged = tmem_find_kept(area, index);
	if (staged)
		tmem_staged_free(staged);
	spin_unlock_irqrestore(&area->kept_lock, flags);
}

/* Load a page of a device that is removed: 0, or -EIO when it is lost. */
int tmem_load_kept(struct tmem_area *area, unsigned long index,
		   struct page *page)
{
	struct tmem_staged *staged;
	struct page *saved;
	unsigned long flags;
	int err = 0;

	spin_lock_irqsave(&area->kept_lock, flags);
	staged = tmem_find_kept(area, index);
	saved = xa_load(&area->saved, index);
	if (staged)
		copy_highpage(page, staged->page);
	else if (saved)
		copy_highpage(page, saved);
	else if (test_bit(index, area->zero))
		clear_highpage(page);
	else
		err = -EIO;
	spin_unlock_irqrestore(&area->kept_lock, flags);
	return err;
}

static void tmem_area_free(struct tmem_area *area)
{
	struct tmem_staged *staged, *next;
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
	list_for_each_entry_safe(staged, next, &area->kept, list)
		tmem_staged_free(staged);
	kvfree(area->lost);
	kvfree(area->zero);
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
	spin_lock_init(&area->kept_lock);
	INIT_LIST_HEAD(&area->kept);
	area->present = kvcalloc(BITS_TO_LONGS(nr_pages), sizeof(long),
				 GFP_KERNEL);
	area->pending = kvcalloc(BITS_TO_LONGS(nr_pages), sizeof(long),
				 GFP_KERNEL);
	area->zero = kvcalloc(BITS_TO_LONGS(nr_pages), sizeof(long),
			      GFP_KERNEL);
	area->queue = kcalloc(area->nr_queues, sizeof(*area->queue),
			      GFP_KERNEL);
	if (!area->present || !area->pending || !area->zero || !area->queue)
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
	spin_lock(&dev->list_lock);
	list_add_tail(&area->list, &dev->areas);
	spin_unlock(&dev->list_lock);
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

	spin_lock(&dev->list_lock);
	list_del_init(&area->list);
	spin_unlock(&dev->list_lock);
	for (i = 0; i < area->nr_queues; i++) {
		struct tmem_queue *q = &dev->queues[i];

		/* Batches that no task waits for may still be at the host */
		spin_lock_irqsave(&q->lock, flags);
		for (j = 0; j < q->nr_slots; j++) {
			if (q->slots[j]->area == area)
				q->slots[j]->area = NULL;
		}
		spin_lock(&area->kept_lock);
		tmem_stage_detach(&q->stage, area, &area->kept);
		spin_unlock(&area->kept_lock);
		spin_unlock_irqrestore(&q->lock, flags);
	}
	RCU_INIT_POINTER(area->dev, NULL);
}

/* Forget the staging pages of an area, also those that the host reads. */
static void tmem_area_drop_staged(struct tmem_area *area, struct tmem_queue *q)
{
	unsigned long flags;
	bool sent;

	spin_lock_irqsave(&q->lock, flags);
	sent = q->stage.nr_sent;
	tmem_stage_drop_area(&q->stage, area);
	spin_unlock_irqrestore(&q->lock, flags);
	if (sent)
		tmem_drain(q);
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
	unsigned int i;
	int srcu;

	srcu = srcu_read_lock(&tmem_srcu);
	dev = srcu_dereference(area->dev, &tmem_srcu);
	if (dev) {
		mutex_lock(&dev->lock);
		for (i = 0; i < area->nr_queues; i++)
			tmem_area_drop_staged(area, &dev->queues[i]);
		/*
		 * No store of a page of this area is in a ring now, and no
		 * batch of invalidates that a task waits for. Another one is
		 * executed before later stores to its queue.
		 */
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
 * The device is removed: its areas stay with their users, and keep the pages
 * that are in the guest. The lock of the device is held, its queues are closed.
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
