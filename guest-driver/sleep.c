// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: suspend and hibernation.
 *
 * A device is reset when the guest wakes up, and that destroys its pools. So
 * the pages at the host are loaded into memory of the guest before, and stored
 * again after. Without enough memory for them the guest does not sleep.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/mm.h>
#include <linux/suspend.h>

#include "tmem.h"

/* Takes only free memory: no I/O, no OOM killer */
#define TMEM_SAVE_GFP	(GFP_NOIO | __GFP_NORETRY | __GFP_NOWARN)

/* Keep a loaded page, unless it was given up meanwhile. */
static int tmem_keep_page(struct tmem_area *area, struct tmem_dev *dev,
			  unsigned long index, struct page *page)
{
	struct tmem_queue *q = tmem_area_queue(area, dev, index);
	unsigned long flags;
	bool kept = false;
	int err;

	err = xa_reserve_irq(&area->saved, index, TMEM_SAVE_GFP);
	if (err)
		return err;
	spin_lock_irqsave(&q->lock, flags);
	xa_lock(&area->saved);
	if (test_bit(index, area->present)) {
		/* In the place that is reserved, so without an allocation */
		kept = !xa_err(__xa_store(&area->saved, index, page,
					  GFP_NOWAIT));
		if (kept)
			get_page(page);
		else
			err = -ENOMEM;
	}
	if (!kept)
		__xa_erase(&area->saved, index);
	xa_unlock(&area->saved);
	spin_unlock_irqrestore(&q->lock, flags);
	return err;
}

/* Load one page into memory of the guest. */
static int tmem_save_page(struct tmem_area *area, struct tmem_dev *dev,
			  unsigned long index)
{
	struct tmem_transfer t = {
		.area = area,
		.dev = dev,
		.op = VIRTIO_TMEM_OP_LOAD,
	};
	struct page *page;
	u8 status;
	int err;

	page = alloc_page(TMEM_SAVE_GFP);
	if (!page)
		return -ENOMEM;
	err = tmem_transfer_page(&t, index, page, &status);
	if (!err && status == VIRTIO_TMEM_S_OK)
		err = tmem_keep_page(area, dev, index, page);
	else if (!err)
		/* A page that was lost before does not prevent the sleep */
		err = tmem_area_may_lose(area);
	put_page(page);
	return err;
}

static void tmem_drop_saved(struct tmem_area *area, struct tmem_dev *dev)
{
	unsigned long index, flags;
	struct tmem_queue *q;
	struct page *page;

	xa_for_each(&area->saved, index, page) {
		q = tmem_area_queue(area, dev, index);
		spin_lock_irqsave(&q->lock, flags);
		/* The host has it: it was saved just now */
		if (test_bit(index, area->present))
			tmem_clear_saved(area, index);
		spin_unlock_irqrestore(&q->lock, flags);
	}
}

/* Load all pages. When that fails they stay where they are. */
static int tmem_save(struct tmem_dev *dev)
{
	struct tmem_area *area;
	unsigned long index;
	int err = 0;

	mutex_lock(&dev->lock);
	list_for_each_entry(area, &dev->areas, list) {
		for_each_set_bit(index, area->present, area->nr_pages) {
			err = tmem_save_page(area, dev, index);
			if (err)
				goto out;
			cond_resched();
		}
	}
out:
	/* Unless the host is gone, it still has the loaded pages, too */
	if (err && READ_ONCE(dev->open)) {
		list_for_each_entry(area, &dev->areas, list)
			tmem_drop_saved(area, dev);
	}
	mutex_unlock(&dev->lock);
	return err;
}

/* Saved pages are not lost. */
static void tmem_keep_saved(struct tmem_dev *dev)
{
	struct tmem_area *area;
	unsigned long index, flags;
	struct tmem_queue *q;
	struct page *page;

	mutex_lock(&dev->lock);
	list_for_each_entry(area, &dev->areas, list) {
		xa_for_each(&area->saved, index, page) {
			q = tmem_area_queue(area, dev, index);
			spin_lock_irqsave(&q->lock, flags);
			tmem_clear_present(area, q, index);
			spin_unlock_irqrestore(&q->lock, flags);
		}
	}
	mutex_unlock(&dev->lock);
}

static void tmem_send_page(struct tmem_area *area, struct tmem_dev *dev,
			   unsigned long index)
{
	struct tmem_queue *q = tmem_area_queue(area, dev, index);
	struct tmem_transfer t = {
		.area = area,
		.dev = dev,
		.op = VIRTIO_TMEM_OP_STORE,
		.saved = true,
	};
	unsigned long flags;
	struct page *page;
	u8 status;

	spin_lock_irqsave(&q->lock, flags);
	page = xa_load(&area->saved, index);
	if (page)
		get_page(page);
	spin_unlock_irqrestore(&q->lock, flags);
	if (!page)
		return;
	if (!tmem_transfer_page(&t, index, page, &status) &&
	    status == VIRTIO_TMEM_S_OK) {
		spin_lock_irqsave(&q->lock, flags);
		if (xa_load(&area->saved, index) == page)
			tmem_clear_saved(area, index);
		spin_unlock_irqrestore(&q->lock, flags);
	}
	put_page(page);
}

/* Store the pages again; those that the host refuses stay in the guest. */
static void tmem_send_saved(struct tmem_dev *dev)
{
	struct tmem_area *area;
	unsigned long index;
	struct page *page;

	mutex_lock(&dev->lock);
	list_for_each_entry(area, &dev->areas, list) {
		xa_for_each(&area->saved, index, page) {
			tmem_send_page(area, dev, index);
			cond_resched();
		}
	}
	mutex_unlock(&dev->lock);
}

int tmem_freeze(struct virtio_device *vdev)
{
	struct tmem_dev *dev = vdev->priv;
	unsigned long pages;
	unsigned int i;
	int err = 0;

	mutex_lock(&dev->life_lock);
	tmem_leave(dev, true);
	if (tmem_pause(dev)) {
		cancel_delayed_work_sync(&dev->flush_work);
		/* What is staged stays so; nothing else is on its way */
		for (i = 0; i < dev->nr_queues; i++) {
			cancel_work_sync(&dev->queues[i].send_work);
			tmem_drain(&dev->queues[i]);
		}
		pages = tmem_dev_pages(dev);
		err = tmem_save(dev);
		if (err) {
			dev_err(&vdev->dev,
				"cannot sleep, no room for the %lu pages which the host has: free memory, or swapoff\n",
				pages);
			tmem_leave(dev, false);
			if (!tmem_run(dev)) {
				tmem_keep_saved(dev);
				tmem_lose(dev);
			}
			tmem_flush_later(dev, 0);
			err = -EBUSY;
			goto out;
		}
		tmem_keep_saved(dev);
	}
	tmem_shut(dev);
	cancel_work_sync(&dev->config_work);
out:
	mutex_unlock(&dev->life_lock);
	return err;
}

/* A device that cannot be revived now is revived later, or never. */
int tmem_restore(struct virtio_device *vdev)
{
	struct tmem_dev *dev = vdev->priv;

	mutex_lock(&dev->life_lock);
	tmem_leave(dev, false);
	if (READ_ONCE(dev->state) == TMEM_PAUSED && !tmem_areas_lose(dev) &&
	    !tmem_open(dev) && !tmem_create_pools(dev)) {
		tmem_send_saved(dev);
		tmem_run(dev);
		tmem_flush_later(dev, 0);
	}
	tmem_lose(dev);
	mutex_unlock(&dev->life_lock);
	return 0;
}

static int tmem_pm_notify(struct notifier_block *nb, unsigned long event,
			  void *data)
{
	struct tmem_dev *dev = container_of(nb, struct tmem_dev, pm);

	switch (event) {
	case PM_HIBERNATION_PREPARE:
		dev_info(&dev->vdev->dev,
			 "no stores while the guest hibernates: the host keeps nothing for a guest that is off\n");
		WRITE_ONCE(dev->hibernating, true);
		break;
	case PM_POST_HIBERNATION:
		WRITE_ONCE(dev->hibernating, false);
		/* What is staged waited meanwhile */
		tmem_flush_later(dev, 0);
		break;
	}
	return NOTIFY_DONE;
}

void tmem_sleep_attach(struct tmem_dev *dev)
{
	dev->pm.notifier_call = tmem_pm_notify;
	register_pm_notifier(&dev->pm);
}

void tmem_sleep_detach(struct tmem_dev *dev)
{
	unregister_pm_notifier(&dev->pm);
}
