// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: staged stores.
 *
 * A store is a copy into a staging page. The host gets staging pages in batches:
 * from the task that stores, when the host works on its own while the task goes
 * on; else from a worker on another CPU, or when no staging page is free; and
 * what is left, from a worker a little later.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpumask.h>
#include <linux/highmem.h>
#include <linux/jiffies.h>
#include <linux/sched.h>

#include "tmem.h"

/* Whether the host is not asked for room now. */
bool tmem_is_withheld(struct tmem_dev *dev)
{
	return READ_ONCE(dev->hibernating) ||
	       (READ_ONCE(dev->full) &&
		time_before(jiffies, READ_ONCE(dev->full_until)));
}

/* The answer to a batch of staging pages; lock held. */
static void tmem_sent(struct tmem_queue *q, struct tmem_slot *slot)
{
	struct tmem_area *area = slot->area;
	unsigned int i, kept = 0;

	for (i = 0; i < slot->count; i++) {
		bool ok = !tmem_store_result(area, tmem_slot_status(slot, i));

		tmem_end_staged(area, q, slot->staged[i], ok);
		kept += ok;
	}
	tmem_count_op(area->user, TMEM_STAGED_BATCHES, 1);
	if (kept == slot->count)
		return;
	tmem_set_full(q->dev);
	tmem_flush_later(q->dev, TMEM_STUCK_MS);
}

/*
 * Put the oldest staging pages of one area into the ring, as one request. Its
 * lock is held.
 *
 * Return: how many.
 */
static unsigned int tmem_send_batch(struct tmem_queue *q)
{
	struct tmem_staged *staged = tmem_stage_oldest(&q->stage);
	struct tmem_slot *slot;
	struct tmem_area *area;
	unsigned int max;

	lockdep_assert_held(&q->lock);

	/* A guest that goes to sleep needs what is in it */
	if (!staged || READ_ONCE(q->dev->hibernating) ||
	    READ_ONCE(q->dev->state) != TMEM_RUN)
		return 0;
	slot = tmem_slot_tryget(q, q->pages_kind);
	if (!slot)
		return 0;
	area = staged->area;
	max = q->pages_kind == TMEM_SLOT_PAGES ? q->dev->store_batch : 1;
	tmem_ride(area, q, TMEM_RIDE_STORE);
	tmem_fill_req(slot, area, q->dev, VIRTIO_TMEM_OP_STORE);
	slot->complete = tmem_sent;
	slot->async = true;
	while (staged && staged->area == area && slot->count < max) {
		slot->staged[slot->count] = staged;
		slot->page[slot->nr_pages++] = staged->page;
		tmem_add_entry(slot, staged->index);
		tmem_begin_staged(q, staged);
		staged = tmem_stage_oldest(&q->stage);
	}
	/* A broken ring takes nothing: they come back when it is reset */
	if (tmem_queue_add(q, slot))
		tmem_slot_release(q, slot);
	return slot->count;
}

/*
 * Send a batch, if at least @min staging pages wait.
 *
 * Return: whether it was sent.
 */
static bool tmem_send(struct tmem_queue *q, unsigned int min)
{
	unsigned long flags;
	unsigned int sent = 0;
	bool kick = false;

	spin_lock_irqsave(&q->lock, flags);
	tmem_queue_reap(q);
	if (q->stage.nr_queued >= min)
		sent = tmem_send_batch(q);
	if (sent)
		kick = virtqueue_kick_prepare(q->vq);
	spin_unlock_irqrestore(&q->lock, flags);
	if (!kick)
		return sent;

	tmem_kick(q, TMEM_KICKS_STAGED);
	spin_lock_irqsave(&q->lock, flags);
	tmem_queue_reap(q);
	q->remote = q->stage.nr_sent;
	spin_unlock_irqrestore(&q->lock, flags);
	return true;
}

/* A tmem_cond_t: a task that wants a staging page may find one, or need not. */
static bool tmem_may_stage(struct tmem_queue *q, void *unused)
{
	return READ_ONCE(q->stage.nr_free) || READ_ONCE(q->stage.nr_stuck);
}

/*
 * A staging page to be filled; NULL when the page has to be stored without.
 * May sleep.
 */
static struct tmem_staged *tmem_stage_get(struct tmem_queue *q)
{
	struct tmem_staged *staged;
	unsigned long flags;
	bool without;

	for (;;) {
		spin_lock_irqsave(&q->lock, flags);
		if (!q->stage.nr_free)
			tmem_queue_reap(q);
		without = q->closed || q->stage.nr_stuck || !q->stage.nr;
		staged = without ? NULL : tmem_stage_take(&q->stage);
		spin_unlock_irqrestore(&q->lock, flags);
		if (without || staged)
			return staged;
		/* All of them are with tasks that are about to fill them */
		if (!tmem_send(q, 1) && !READ_ONCE(q->stage.nr_sent))
			return NULL;
		if (!tmem_may_stage(q, NULL) &&
		    tmem_wait(q, tmem_may_stage, NULL, false,
			      TMEM_KICKS_STAGED))
			return NULL;
	}
}

/* There is one more staging page to send. */
static void tmem_staged(struct tmem_queue *q)
{
	struct tmem_dev *dev = q->dev;

	if (READ_ONCE(q->stage.nr_queued) < dev->store_batch)
		tmem_flush_later(dev, TMEM_FLUSH_MS);
	else if (READ_ONCE(q->remote))
		tmem_send(q, dev->store_batch);
	else if (num_online_cpus() > 1)
		queue_work(dev->send_wq, &q->send_work);
}

/**
 * tmem_stage_page() - store a page by a copy of it
 * @area: area
 * @q: queue of the page
 * @index: index of the page in the area
 * @page: the data
 *
 * May sleep, when the host is slower than the guest.
 *
 * Return: whether it was stored so.
 */
bool tmem_stage_page(struct tmem_area *area, struct tmem_queue *q,
		     unsigned long index, struct page *page)
{
	struct tmem_staged *staged;
	unsigned long flags;
	bool closed;

	if (!q->stage.nr)
		return false;
	staged = tmem_stage_get(q);
	if (!staged)
		return false;
	copy_highpage(staged->page, page);
	spin_lock_irqsave(&q->lock, flags);
	closed = q->closed;
	if (closed)
		tmem_stage_untake(&q->stage, staged);
	else
		tmem_put_staged(area, q, index, staged);
	spin_unlock_irqrestore(&q->lock, flags);
	if (closed)
		return false;
	tmem_count_op(area->user, TMEM_STORES_STAGED, 1);
	tmem_staged(q);
	return true;
}

/* The work of tmem_queue.send_work */
void tmem_send_work(struct work_struct *work)
{
	struct tmem_queue *q = container_of(work, struct tmem_queue, send_work);

	while (tmem_send(q, q->dev->store_batch))
		cond_resched();
	/* The rest */
	tmem_flush_later(q->dev, TMEM_FLUSH_MS);
}

/* Send all that waits, as far as the ring has room. */
static void tmem_flush_queue(struct tmem_queue *q)
{
	while (tmem_send(q, 1))
		cond_resched();
}

/*
 * Pages that were refused, once more. A batch at a time: the host may refuse
 * it, too.
 */
static void tmem_flush_stuck(struct tmem_queue *q)
{
	struct tmem_dev *dev = q->dev;
	unsigned long flags;

	while (READ_ONCE(q->stage.nr_stuck) && !READ_ONCE(q->stage.nr_sent) &&
	       time_after_eq(jiffies, READ_ONCE(dev->stuck_until))) {
		spin_lock_irqsave(&q->lock, flags);
		tmem_stage_unstick(&q->stage, dev->store_batch);
		spin_unlock_irqrestore(&q->lock, flags);
		if (!tmem_send(q, 1))
			break;
		cond_resched();
	}
}

/* Whether the host has answered nothing since the last call. */
static bool tmem_is_late(struct tmem_queue *q)
{
	unsigned long flags;
	bool late;

	spin_lock_irqsave(&q->lock, flags);
	tmem_queue_reap(q);
	late = q->stage.nr_sent && q->waited && q->flushed_at == q->reaped;
	q->waited = q->stage.nr_sent;
	q->flushed_at = q->reaped;
	spin_unlock_irqrestore(&q->lock, flags);
	return late;
}

/* Wait for a host that is late: only who waits notices that it is gone. */
static void tmem_wait_for_late(struct tmem_dev *dev)
{
	unsigned int i;

	for (i = 0; i < dev->nr_queues; i++) {
		if (tmem_is_late(&dev->queues[i]))
			tmem_drain(&dev->queues[i]);
	}
}

/* The work of tmem_dev.flush_work */
void tmem_flush_work(struct work_struct *work)
{
	struct tmem_dev *dev = container_of(to_delayed_work(work),
					    struct tmem_dev, flush_work);
	unsigned int i, waiting = 0, stuck = 0;
	struct tmem_area *area;

	mutex_lock(&dev->lock);
	for (i = 0; i < dev->nr_queues; i++)
		tmem_flush_queue(&dev->queues[i]);
	list_for_each_entry(area, &dev->areas, list)
		tmem_flush_area(area, dev);
	for (i = 0; i < dev->nr_queues; i++)
		tmem_flush_stuck(&dev->queues[i]);
	mutex_unlock(&dev->lock);

	tmem_wait_for_late(dev);
	for (i = 0; i < dev->nr_queues; i++) {
		struct tmem_stage *stage = &dev->queues[i].stage;

		waiting += READ_ONCE(stage->nr_sent) +
			   READ_ONCE(stage->nr_queued);
		stuck += READ_ONCE(stage->nr_stuck);
	}
	if (READ_ONCE(dev->state) != TMEM_RUN || READ_ONCE(dev->hibernating))
		return;
	if (waiting)
		tmem_flush_later(dev, TMEM_FLUSH_MS);
	else if (stuck)
		tmem_flush_later(dev, TMEM_STUCK_MS);
}
