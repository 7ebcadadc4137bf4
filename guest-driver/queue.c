// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: request queues.
 *
 * A host which works inside the exit of the doorbell has answered when the
 * write to the doorbell returns. So the used ring is polled and interrupts are
 * off; they are a help for a host with a thread of its own that is late.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/ktime.h>
#include <linux/moduleparam.h>
#include <linux/ratelimit.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>

#include "tmem.h"

/*
 * Requests of one queue, by kind; more tasks than that wait for a slot. A ring
 * of 256 descriptors has room for all.
 */
static const struct {
	unsigned int slots;
	unsigned int entries;
	unsigned int pages;
} tmem_slot_kinds[TMEM_NR_SLOT_KINDS] = {
	[TMEM_SLOT_BATCH] = { 2, VIRTIO_TMEM_MAX_BATCH, 0 },
	[TMEM_SLOT_PAGE] = { 16, 1, 1 },
	[TMEM_SLOT_PAGES] = { 3, VIRTIO_TMEM_MAX_BATCH, VIRTIO_TMEM_MAX_BATCH },
};

/* Descriptors of a chain, beside those of pages: keys, answer */
#define TMEM_DESCS		2

/*
 * The host asked for no doorbell as it was at work on this queue, yet there is
 * no answer: ring. A host that works in the exit then answers before it
 * returns, so that no task has to sleep until an interrupt.
 */
#define TMEM_KICK_AGAIN_US	50
/* Poll that long, then sleep until an interrupt */
#define TMEM_POLL_US		200
/* How often a sleeper checks whether the device still works */
#define TMEM_CHECK_MS		100
/* Time without any answer after which there is a line in the log */
#define TMEM_STALL_MS		10000

static unsigned int tmem_timeout_ms;
module_param_named(timeout_ms, tmem_timeout_ms, uint, 0444);
MODULE_PARM_DESC(timeout_ms, "Give a device up that answers nothing for that long, 0 for never (default: 0)");

static void tmem_slot_free(struct tmem_slot *slot)
{
	kfree(slot->sg);
	kfree(slot->staged);
	kfree(slot->page);
	kfree(slot->in);
	kfree(slot->out);
	kfree(slot);
}

static struct tmem_slot *tmem_slot_alloc(enum tmem_slot_kind kind)
{
	unsigned int n = tmem_slot_kinds[kind].entries;
	unsigned int pages = tmem_slot_kinds[kind].pages;
	struct tmem_slot *slot;

	slot = kzalloc(sizeof(*slot), GFP_KERNEL);
	if (!slot)
		return NULL;
	slot->kind = kind;
	slot->out = kzalloc(struct_size(slot->out, entry, n), GFP_KERNEL);
	slot->in = kzalloc(struct_size(slot->in, status, n), GFP_KERNEL);
	if (!slot->out || !slot->in)
		goto free;
	if (!pages)
		return slot;
	slot->page = kcalloc(pages, sizeof(*slot->page), GFP_KERNEL);
	slot->staged = kcalloc(pages, sizeof(*slot->staged), GFP_KERNEL);
	slot->sg = kcalloc(pages, sizeof(*slot->sg), GFP_KERNEL);
	if (slot->page && slot->staged && slot->sg)
		return slot;
free:
	tmem_slot_free(slot);
	return NULL;
}

int tmem_queue_init(struct tmem_queue *q, struct tmem_dev *dev,
		    unsigned int index)
{
	enum tmem_slot_kind kind;
	unsigned int i;

	q->dev = dev;
	q->index = index;
	q->closed = true;
	spin_lock_init(&q->lock);
	init_waitqueue_head(&q->wait);

	for (kind = 0; kind < TMEM_NR_SLOT_KINDS; kind++)
		q->nr_slots += tmem_slot_kinds[kind].slots;
	q->slots = kcalloc(q->nr_slots, sizeof(*q->slots), GFP_KERNEL);
	if (!q->slots)
		return -ENOMEM;
	for (i = 0, kind = 0; kind < TMEM_NR_SLOT_KINDS; kind++) {
		unsigned int end = i + tmem_slot_kinds[kind].slots;

		for (; i < end; i++) {
			q->slots[i] = tmem_slot_alloc(kind);
			if (!q->slots[i])
				return -ENOMEM;
		}
	}
	return 0;
}

/* Nobody may use the queue now; harmless on one that init failed for. */
void tmem_queue_free(struct tmem_queue *q)
{
	unsigned int i;

	if (!q->slots)
		return;
	for (i = 0; i < q->nr_slots; i++) {
		if (q->slots[i])
			tmem_slot_free(q->slots[i]);
	}
	kfree(q->slots);
	q->slots = NULL;
}

/* Start on a fresh ring. No slot is in use, at the host or by a task. */
int tmem_queue_start(struct tmem_queue *q, struct virtqueue *vq)
{
	unsigned int room = virtqueue_get_vring_size(vq);
	unsigned int descs, i;
	enum tmem_slot_kind kind;
	unsigned long flags;

	if (room < tmem_slot_kinds[TMEM_SLOT_BATCH].slots * TMEM_DESCS +
		   TMEM_DESCS + 1)
		return -EINVAL;

	spin_lock_irqsave(&q->lock, flags);
	q->vq = vq;
	virtqueue_disable_cb(vq);
	for (kind = 0; kind < TMEM_NR_SLOT_KINDS; kind++)
		INIT_LIST_HEAD(&q->free[kind]);
	for (i = 0; i < q->nr_slots; i++) {
		struct tmem_slot *slot = q->slots[i];

		/* The ring has room for every slot: adding cannot fail */
		descs = TMEM_DESCS + tmem_slot_kinds[slot->kind].pages;
		if (room < descs)
			break;
		room -= descs;
		slot->area = NULL;
		list_add_tail(&slot->list, &q->free[slot->kind]);
	}
	/* In a ring that is too small for that, a request has one page */
	q->pages_kind = list_empty(&q->free[TMEM_SLOT_PAGES]) ? TMEM_SLOT_PAGE :
			TMEM_SLOT_PAGES;
	q->added = 0;
	q->reaped = 0;
	WRITE_ONCE(q->closed, false);
	spin_unlock_irqrestore(&q->lock, flags);
	return 0;
}

/* From here on no request enters the ring, and no answer is taken from it. */
void tmem_queue_close(struct tmem_queue *q)
{
	unsigned long flags;

	spin_lock_irqsave(&q->lock, flags);
	WRITE_ONCE(q->closed, true);
	spin_unlock_irqrestore(&q->lock, flags);
	wake_up_all(&q->wait);
}

void tmem_queue_callback(struct virtqueue *vq)
{
	struct tmem_dev *dev = vq->vdev->priv;
	unsigned int i;

	tmem_count(TMEM_INTERRUPTS);
	for (i = 0; i < dev->nr_rings; i++) {
		if (dev->queues[i].vq_index == vq->index)
			wake_up_all(&dev->queues[i].wait);
	}
}

/* As tmem_slot_put(), with the lock of the queue. */
void tmem_slot_release(struct tmem_queue *q, struct tmem_slot *slot)
{
	lockdep_assert_held(&q->lock);

	slot->area = NULL;
	list_add(&slot->list, &q->free[slot->kind]);
	if (q->sleepers)
		wake_up_all(&q->wait);
}

/*
 * Take all answers from the used ring. In the order of the ring, so that the
 * bitmaps of an area match the host.
 */
void tmem_queue_reap(struct tmem_queue *q)
{
	struct tmem_slot *slot;
	unsigned int len;

	lockdep_assert_held(&q->lock);

	if (q->closed)
		return;
	while ((slot = virtqueue_get_buf(q->vq, &len))) {
		slot->len = len;
		q->reaped++;
		if (slot->area)
			slot->complete(q, slot);
		if (slot->async) {
			tmem_slot_release(q, slot);
			continue;
		}
		/* Pairs with the acquire in tmem_slot_is_done() */
		smp_store_release(&slot->done, true);
		if (q->sleepers)
			wake_up_all(&q->wait);
	}
}

/* Caller holds the lock of the queue. */
struct tmem_slot *tmem_slot_tryget(struct tmem_queue *q,
				   enum tmem_slot_kind kind)
{
	struct tmem_slot *slot;

	lockdep_assert_held(&q->lock);

	if (q->closed)
		return NULL;
	slot = list_first_entry_or_null(&q->free[kind], struct tmem_slot, list);
	if (!slot)
		return NULL;
	list_del(&slot->list);
	slot->done = false;
	slot->async = false;
	slot->len = 0;
	slot->count = 0;
	slot->nr_pages = 0;
	return slot;
}

static bool tmem_slot_poll(struct tmem_queue *q, enum tmem_slot_kind kind,
			   struct tmem_slot **slot)
{
	unsigned long flags;
	bool closed;

	spin_lock_irqsave(&q->lock, flags);
	closed = q->closed;
	if (!closed && list_empty(&q->free[kind]))
		tmem_queue_reap(q);
	*slot = tmem_slot_tryget(q, kind);
	spin_unlock_irqrestore(&q->lock, flags);
	return *slot || closed;
}

static void tmem_sleep_begin(struct tmem_queue *q)
{
	unsigned long flags;

	spin_lock_irqsave(&q->lock, flags);
	/* The condition of the sleeper sees all changes before this */
	if (!q->sleepers++ && !q->closed)
		virtqueue_enable_cb(q->vq);
	spin_unlock_irqrestore(&q->lock, flags);
}

static void tmem_sleep_end(struct tmem_queue *q)
{
	unsigned long flags;

	spin_lock_irqsave(&q->lock, flags);
	if (!--q->sleepers && !q->closed)
		virtqueue_disable_cb(q->vq);
	spin_unlock_irqrestore(&q->lock, flags);
}

/**
 * tmem_slot_get() - get a slot, wait for one if need be
 * @q: queue
 * @kind: size of the slot
 *
 * Every slot has an owner that waits for the host, and that closes the queue
 * when the device has failed: so this wait ends.
 *
 * Return: the slot, or NULL when the queue is closed.
 */
struct tmem_slot *tmem_slot_get(struct tmem_queue *q, enum tmem_slot_kind kind)
{
	struct tmem_slot *slot;

	might_sleep();

	if (tmem_slot_poll(q, kind, &slot))
		return slot;
	tmem_count(TMEM_SLOT_WAITS);
	tmem_sleep_begin(q);
	wait_event(q->wait, tmem_slot_poll(q, kind, &slot));
	tmem_sleep_end(q);
	return slot;
}

void tmem_slot_put(struct tmem_queue *q, struct tmem_slot *slot)
{
	unsigned long flags;

	spin_lock_irqsave(&q->lock, flags);
	tmem_slot_release(q, slot);
	spin_unlock_irqrestore(&q->lock, flags);
}

/**
 * tmem_queue_add() - make a request available to the host
 * @q: queue, its lock is held
 * @slot: request; its header, its entries and its pages are filled in
 *
 * Return: 0, or -EIO when the queue is closed or broken.
 */
int tmem_queue_add(struct tmem_queue *q, struct tmem_slot *slot)
{
	struct scatterlist keys, answer;
	unsigned int out = 0, in = 0, i;
	struct scatterlist *sgs[3];
	bool store = slot->out->req.op == cpu_to_le16(VIRTIO_TMEM_OP_STORE);

	lockdep_assert_held(&q->lock);

	if (q->closed)
		return -EIO;

	slot->out->req.count = cpu_to_le16(slot->count);
	sg_init_one(&keys, slot->out,
		    struct_size(slot->out, entry, slot->count));
	sg_init_one(&answer, slot->in,
		    struct_size(slot->in, status, slot->count));
	if (slot->nr_pages)
		sg_init_table(slot->sg, slot->nr_pages);
	for (i = 0; i < slot->nr_pages; i++)
		sg_set_page(&slot->sg[i], slot->page[i], PAGE_SIZE, 0);

	sgs[out++] = &keys;
	if (slot->nr_pages && store)
		sgs[out++] = slot->sg;
	sgs[out + in++] = &answer;
	if (slot->nr_pages && !store)
		sgs[out + in++] = slot->sg;

	/* Without indirect descriptors this allocates nothing */
	if (virtqueue_add_sgs(q->vq, sgs, out, in, slot, GFP_ATOMIC))
		return -EIO;
	q->added++;
	return 0;
}

/* A tmem_cond_t: there is the answer to a request. */
bool tmem_slot_is_done(struct tmem_queue *q, void *slot)
{
	/* Pairs with the release in tmem_queue_reap() */
	return smp_load_acquire(&((struct tmem_slot *)slot)->done);
}

static bool tmem_queue_done(struct tmem_queue *q, tmem_cond_t done, void *data)
{
	unsigned long flags;

	if (done(q, data))
		return true;
	/* The owner of the lock takes our answer, too, or we try again */
	if (!spin_trylock_irqsave(&q->lock, flags))
		return false;
	tmem_queue_reap(q);
	spin_unlock_irqrestore(&q->lock, flags);
	return done(q, data);
}

static bool tmem_queue_done_or_closed(struct tmem_queue *q, tmem_cond_t done,
				      void *data)
{
	unsigned long flags;
	bool closed;

	spin_lock_irqsave(&q->lock, flags);
	closed = q->closed;
	tmem_queue_reap(q);
	spin_unlock_irqrestore(&q->lock, flags);
	return done(q, data) || closed || virtqueue_is_broken(q->vq);
}

/* The evidence on which a device is given up: it needs a reset, or is gone. */
static bool tmem_device_failed(struct tmem_queue *q)
{
	struct virtio_device *vdev = q->dev->vdev;

	return READ_ONCE(q->closed) || virtqueue_is_broken(q->vq) ||
	       vdev->config->get_status(vdev) & VIRTIO_CONFIG_S_NEEDS_RESET;
}

void tmem_kick(struct tmem_queue *q, enum tmem_queue_stat why)
{
	tmem_count(why);
	/* A failure marks the queue broken, which the sleeper finds */
	virtqueue_notify(q->vq);
}

static bool tmem_queue_poll(struct tmem_queue *q, tmem_cond_t done, void *data,
			    bool kicked)
{
	ktime_t start;
	s64 us;

	if (tmem_queue_done(q, done, data))
		return true;
	start = ktime_get();
	do {
		cpu_relax();
		if (tmem_queue_done(q, done, data))
			return true;
		us = ktime_us_delta(ktime_get(), start);
		if (!kicked && us >= TMEM_KICK_AGAIN_US) {
			tmem_kick(q, TMEM_KICKS_AGAIN);
			kicked = true;
		}
	} while (us < TMEM_POLL_US);
	/* The doorbell, or the lock's owner, may have taken all that time */
	tmem_queue_done_or_closed(q, done, data);
	return done(q, data);
}

static void tmem_report_stall(struct tmem_queue *q, unsigned int idle_ms)
{
	static DEFINE_RATELIMIT_STATE(limit, TMEM_STALL_MS * HZ / MSEC_PER_SEC,
				      1);

	if (idle_ms % TMEM_STALL_MS == 0 && __ratelimit(&limit))
		dev_warn(&q->dev->vdev->dev,
			 "no answer from the host for %u s, waiting: is its tmem service stopped?\n",
			 idle_ms / (unsigned int)MSEC_PER_SEC);
}

/*
 * Time in which the guest or its host did not run does not count: the driver
 * counts how often a sleeper woke up and the queue had no new answer.
 */
static int tmem_queue_sleep(struct tmem_queue *q, tmem_cond_t done, void *data)
{
	unsigned long reaped = READ_ONCE(q->reaped);
	unsigned int idle_ms = 0;
	int err = 0;

	tmem_count(TMEM_POLL_TIMEOUTS);
	tmem_sleep_begin(q);
	for (;;) {
		wait_event_timeout(q->wait,
				   tmem_queue_done_or_closed(q, done, data),
				   msecs_to_jiffies(TMEM_CHECK_MS));
		if (done(q, data))
			break;
		if (tmem_device_failed(q)) {
			err = -EIO;
			break;
		}
		if (READ_ONCE(q->reaped) != reaped) {
			reaped = READ_ONCE(q->reaped);
			idle_ms = 0;
			continue;
		}
		idle_ms += TMEM_CHECK_MS;
		tmem_report_stall(q, idle_ms);
		if (tmem_timeout_ms && idle_ms >= tmem_timeout_ms) {
			tmem_count(TMEM_REQUEST_TIMEOUTS);
			err = -ETIMEDOUT;
			break;
		}
	}
	tmem_sleep_end(q);
	return err;
}

/**
 * tmem_queue_wait() - ring the doorbell and wait for an answer
 * @q: queue
 * @done: what to wait for: answers that were taken from the ring make it true;
 *	it is called without the lock of the queue
 * @data: for @done
 * @kick: whether virtqueue_kick_prepare() asked for the doorbell
 * @why: how to count the doorbell
 *
 * When this fails, the host may still touch the buffers in the ring until the
 * device is reset.
 *
 * Return: 0 when @done is true, -ETIMEDOUT when there was no answer for
 * tmem_timeout_ms, -EIO when the device failed.
 */
int tmem_queue_wait(struct tmem_queue *q, tmem_cond_t done, void *data,
		    bool kick, enum tmem_queue_stat why)
{
	if (kick)
		tmem_kick(q, why);
	if (likely(tmem_queue_poll(q, done, data, kick)))
		return 0;
	return tmem_queue_sleep(q, done, data);
}

/* The host's status of entry @i; INVALID if the answer is inconsistent. */
u8 tmem_slot_status(struct tmem_slot *slot, unsigned int i)
{
	u8 status;

	if (slot->len < sizeof(slot->in->resp))
		goto bad;
	status = READ_ONCE(slot->in->resp.status);
	if (status != VIRTIO_TMEM_S_OK || !slot->count)
		return status;
	if (i >= slot->count ||
	    slot->len < struct_size(slot->in, status, slot->count))
		goto bad;
	return READ_ONCE(slot->in->status[i]);
bad:
	tmem_count(TMEM_BAD_ANSWERS);
	return VIRTIO_TMEM_S_INVALID;
}
