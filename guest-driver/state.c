// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: the state of the device.
 *
 * A device is given up when it needs a reset, when its ring is broken or its
 * host is gone; not because an answer takes long. The pages at the host are
 * lost then.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/virtio_config.h>

#include "tmem.h"

/* Time until the first try to revive it, and at most until the next */
#define TMEM_REVIVE_MIN		HZ
#define TMEM_REVIVE_MAX		(4 * HZ)

/*
 * Readers are the operations on pages: they sleep, and they end when the host
 * has answered or the device was given up. Protects tmem_area.dev.
 */
DEFINE_SRCU(tmem_srcu);

/* Operations on pages that wait for a guest to wake up */
static DECLARE_WAIT_QUEUE_HEAD(tmem_resumed);

/*
 * Reset the device, and wait until it is quiet.
 *
 * Until the status reads zero, the host may write to the buffers in the rings,
 * which are pages of this guest, and to the rings themselves. No page is given
 * back and no ring is freed before. So this waits without a bound.
 */
static void tmem_reset_quietly(struct tmem_dev *dev)
{
	struct virtio_device *vdev = dev->vdev;
	unsigned long start = jiffies, said = start;

	virtio_reset_device(vdev);
	while (vdev->config->get_status(vdev)) {
		msleep(20);
		if (time_before(jiffies, said + 10 * HZ))
			continue;
		said = jiffies;
		dev_warn(&vdev->dev,
			 "no end of a reset for %lu s, waiting, as the host may still write to this guest's memory: continue or end its tmem service\n",
			 (said - start) / HZ);
	}
}

static void tmem_close_rings(struct tmem_dev *dev)
{
	unsigned long flags;
	unsigned int i;

	lockdep_assert_held(&dev->break_lock);

	for (i = 0; i < dev->nr_rings; i++)
		tmem_queue_close(&dev->queues[i]);
	virtio_break_device(dev->vdev);
	tmem_reset_quietly(dev);
	/* Those of which there is no answer are still here */
	for (i = 0; i < dev->nr_queues; i++) {
		struct tmem_queue *q = &dev->queues[i];

		spin_lock_irqsave(&q->lock, flags);
		tmem_stage_recall(&q->stage);
		spin_unlock_irqrestore(&q->lock, flags);
	}
	dev->open = false;
}

/* Try again after a while, unless the driver is leaving. */
static void tmem_revive_later(struct tmem_dev *dev)
{
	lockdep_assert_held(&dev->break_lock);

	if (dev->leaving)
		return;
	dev->revive_delay = clamp_t(unsigned long, dev->revive_delay,
				    TMEM_REVIVE_MIN, TMEM_REVIVE_MAX);
	if (queue_delayed_work(system_unbound_wq, &dev->revive_work,
			       dev->revive_delay))
		dev->revive_delay *= 2;
}

static void tmem_die(struct tmem_dev *dev)
{
	lockdep_assert_held(&dev->break_lock);

	WRITE_ONCE(dev->state, TMEM_DEAD);
	wake_up_all(&tmem_resumed);
	tmem_revive_later(dev);
}

/**
 * tmem_break() - give the device up
 * @dev: device
 * @why: for the log, or NULL
 *
 * The pages at the host are lost. Resets the device, so that the host cannot
 * write to a page which its owner takes back without an answer. May sleep; a
 * second caller returns after the reset, too.
 */
void tmem_break(struct tmem_dev *dev, const char *why)
{
	mutex_lock(&dev->break_lock);
	if (dev->open) {
		if (why && dev->state != TMEM_DEAD) {
			tmem_count(TMEM_BROKEN);
			dev_err(&dev->vdev->dev,
				"%s: giving it up with its pages, who needs one gets an I/O error; new pages go to the host when its tmem service is back\n",
				why);
		}
		tmem_close_rings(dev);
		tmem_die(dev);
	}
	mutex_unlock(&dev->break_lock);
}

/**
 * tmem_wait() - ring the doorbell and wait for an answer
 * @q: queue
 * @done: as for tmem_queue_wait()
 * @data: for @done
 * @kick: whether virtqueue_kick_prepare() asked for the doorbell
 * @why: how to count the doorbell
 *
 * When this fails, the device was reset before it returns: the host does not
 * touch the buffers in the rings any more.
 *
 * Return: 0 when @done is true, else -EIO.
 */
int tmem_wait(struct tmem_queue *q, tmem_cond_t done, void *data, bool kick,
	      enum tmem_queue_stat why)
{
	int err = tmem_queue_wait(q, done, data, kick, why);

	if (likely(!err))
		return 0;
	tmem_break(q->dev, err == -ETIMEDOUT ? "no answer" : "device failed");
	return -EIO;
}

/* Wait for the answer to a request. */
int tmem_wait_slot(struct tmem_queue *q, struct tmem_slot *slot, bool kick,
		   enum tmem_queue_stat why)
{
	return tmem_wait(q, tmem_slot_is_done, slot, kick, why);
}

static bool tmem_is_drained(struct tmem_queue *q, void *added)
{
	return (long)(READ_ONCE(q->reaped) - *(unsigned long *)added) >= 0;
}

/**
 * tmem_drain() - wait for the answers to all requests in a ring
 * @q: queue
 *
 * Nothing that was in the ring is at the host afterwards: it was answered, or
 * the device was reset.
 */
void tmem_drain(struct tmem_queue *q)
{
	unsigned long flags, added;
	bool failed;

	spin_lock_irqsave(&q->lock, flags);
	tmem_queue_reap(q);
	failed = q->closed || virtqueue_is_broken(q->vq);
	added = q->added;
	spin_unlock_irqrestore(&q->lock, flags);
	if (failed)
		/* Perhaps it is not reset yet */
		tmem_break(q->dev, "device failed");
	else
		tmem_wait(q, tmem_is_drained, &added, false, TMEM_KICKS_AGAIN);
}

/**
 * tmem_quiesce() - have a device that is reset
 * @dev: device
 *
 * The device is quiet afterwards, and no operation is at it. Its state stays.
 */
void tmem_quiesce(struct tmem_dev *dev)
{
	mutex_lock(&dev->break_lock);
	if (dev->open)
		tmem_close_rings(dev);
	else
		tmem_reset_quietly(dev);
	mutex_unlock(&dev->break_lock);
	/* The tasks that saw it fail have left now */
	synchronize_srcu(&tmem_srcu);
}

/* Let operations on pages go on, if there is a device for them. */
bool tmem_run(struct tmem_dev *dev)
{
	bool open;

	mutex_lock(&dev->break_lock);
	open = dev->open;
	if (open) {
		WRITE_ONCE(dev->state, TMEM_RUN);
		dev->revive_delay = 0;
		wake_up_all(&tmem_resumed);
	}
	mutex_unlock(&dev->break_lock);
	return open;
}

/**
 * tmem_pause() - let operations on pages wait from now on
 * @dev: device
 *
 * Returns when those that had begun are done.
 *
 * Return: false when the device was given up.
 */
bool tmem_pause(struct tmem_dev *dev)
{
	bool runs;

	mutex_lock(&dev->break_lock);
	runs = dev->state == TMEM_RUN;
	if (runs)
		WRITE_ONCE(dev->state, TMEM_PAUSED);
	mutex_unlock(&dev->break_lock);
	synchronize_srcu(&tmem_srcu);
	return runs;
}

/* With @leaving the device is not revived. */
void tmem_leave(struct tmem_dev *dev, bool leaving)
{
	mutex_lock(&dev->break_lock);
	dev->leaving = leaving;
	mutex_unlock(&dev->break_lock);
}

/* There was a device and there is none: fail, and try to have one. */
void tmem_lose(struct tmem_dev *dev)
{
	mutex_lock(&dev->break_lock);
	if (!dev->open)
		tmem_die(dev);
	mutex_unlock(&dev->break_lock);
}

/* An attempt to revive the device failed: the next one is later. */
void tmem_retry(struct tmem_dev *dev)
{
	mutex_lock(&dev->break_lock);
	tmem_revive_later(dev);
	mutex_unlock(&dev->break_lock);
}

static bool tmem_is_paused(struct tmem_area *area)
{
	struct tmem_dev *dev;
	bool paused;
	int srcu;

	srcu = srcu_read_lock(&tmem_srcu);
	dev = srcu_dereference(area->dev, &tmem_srcu);
	paused = dev && READ_ONCE(dev->state) == TMEM_PAUSED;
	srcu_read_unlock(&tmem_srcu, srcu);
	return paused;
}

void tmem_wait_while_paused(struct tmem_area *area)
{
	wait_event(tmem_resumed, !tmem_is_paused(area));
}
