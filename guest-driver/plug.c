// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: loads of one plug.
 *
 * Readahead of the swap code asks for its pages one by one, with a plug. They
 * are collected, and loaded with one request when the plug is flushed: into the
 * pages themselves, which are locked and in the swap cache, so that their slots
 * are neither freed nor stored to meanwhile.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/blkdev.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/pagemap.h>
#include <linux/slab.h>

#include "tmem.h"

/* More pages than a cluster has by default, vm.page-cluster */
#define TMEM_PLUG_PAGES		32

static bool tmem_plug_loads = true;
module_param_named(plug, tmem_plug_loads, bool, 0644);
MODULE_PARM_DESC(plug, "Load the pages of a readahead with one request (on by default)");

/**
 * struct tmem_plug - pages that wait for a plug to be flushed
 * @cb: in the plug
 * @work: loads them, when the task of the plug must not sleep
 * @area: their area
 * @count: how many
 * @load: the pages, with a reference
 */
struct tmem_plug {
	struct blk_plug_cb cb;
	struct work_struct work;
	struct tmem_area *area;
	unsigned int count;
	struct {
		unsigned long index;
		struct page *page;
	} load[TMEM_PLUG_PAGES];
};

static struct workqueue_struct *tmem_plug_wq;

/* Have what is needed to load together; without, each page is loaded at once. */
void tmem_plug_init(void)
{
	/* It loads pages for tasks that free memory */
	if (!tmem_plug_wq)
		tmem_plug_wq = alloc_workqueue("tmem_load", WQ_MEM_RECLAIM |
					       WQ_UNBOUND | WQ_HIGHPRI, 0);
}

static void tmem_plug_done(struct page *page, int err)
{
	if (err) {
		SetPageError(page);
		ClearPageUptodate(page);
		pr_alert_ratelimited("read error on a page of a swap area\n");
	} else {
		SetPageUptodate(page);
	}
	unlock_page(page);
	put_page(page);
}

static void tmem_plug_run(struct tmem_plug *plug)
{
	struct tmem_io io;
	unsigned int i;

	tmem_io_begin(&io, plug->area, VIRTIO_TMEM_OP_LOAD, plug->count > 1);
	io.done = tmem_plug_done;
	for (i = 0; i < plug->count; i++)
		tmem_io_load(&io, plug->load[i].index, plug->load[i].page);
	tmem_io_end(&io);
	plug->count = 0;
}

static void tmem_plug_work(struct work_struct *work)
{
	struct tmem_plug *plug = container_of(work, struct tmem_plug, work);

	tmem_plug_run(plug);
	kfree(plug);
}

static void tmem_unplug(struct blk_plug_cb *cb, bool from_schedule)
{
	struct tmem_plug *plug = container_of(cb, struct tmem_plug, cb);

	if (from_schedule) {
		INIT_WORK(&plug->work, tmem_plug_work);
		queue_work(tmem_plug_wq, &plug->work);
		return;
	}
	tmem_plug_run(plug);
	kfree(plug);
}

/**
 * tmem_plug_load() - load a page when the plug of this task is flushed
 * @area: area
 * @index: index of the page in the area
 * @page: where to; it is marked and unlocked then
 *
 * May sleep.
 *
 * Return: false when there is no plug, or the page has to be loaded at once.
 */
bool tmem_plug_load(struct tmem_area *area, unsigned long index,
		    struct page *page)
{
	struct blk_plug_cb *cb;
	struct tmem_plug *plug;

	/* One outside the swap cache is given up by a task that is killed */
	if (!current->plug || !tmem_plug_wq || !READ_ONCE(tmem_plug_loads) ||
	    !PageSwapCache(page))
		return false;
	cb = blk_check_plugged(tmem_unplug, area, sizeof(*plug));
	if (!cb)
		return false;
	plug = container_of(cb, struct tmem_plug, cb);
	plug->area = area;
	if (plug->count == TMEM_PLUG_PAGES)
		tmem_plug_run(plug);
	get_page(page);
	plug->load[plug->count].index = index;
	plug->load[plug->count++].page = page;
	return true;
}
