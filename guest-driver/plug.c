// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: loads that wait for a plug.
 *
 * Readahead asks for its pages one by one, with a plug. A user of the device
 * collects them there, and loads them with one request when the plug is
 * flushed.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/moduleparam.h>
#include <linux/slab.h>

#include "plug.h"

static bool tmem_plug_loads = true;
module_param_named(plug, tmem_plug_loads, bool, 0644);
MODULE_PARM_DESC(plug, "Load the pages of a readahead with one request (on by default)");

static struct workqueue_struct *tmem_plug_wq;

/* Have what is needed to collect loads; without, each is done at once. */
void tmem_plug_init(void)
{
	/* It loads pages for tasks that free memory */
	tmem_plug_wq = alloc_workqueue("tmem_load", WQ_MEM_RECLAIM |
				       WQ_UNBOUND | WQ_HIGHPRI, 0);
}

/* The users are gone. */
void tmem_plug_exit(void)
{
	if (tmem_plug_wq)
		destroy_workqueue(tmem_plug_wq);
}

static void tmem_plug_run(struct tmem_plug *plug)
{
	plug->run(plug);
	kfree(plug);
}

static void tmem_plug_work(struct work_struct *work)
{
	tmem_plug_run(container_of(work, struct tmem_plug, work));
}

static void tmem_unplug(struct blk_plug_cb *cb, bool from_schedule)
{
	struct tmem_plug *plug = container_of(cb, struct tmem_plug, cb);

	if (from_schedule) {
		/* The task is about to sleep, and must not wait for loads */
		INIT_WORK(&plug->work, tmem_plug_work);
		queue_work(tmem_plug_wq, &plug->work);
		return;
	}
	tmem_plug_run(plug);
}

/**
 * tmem_plug_get() - what the plug of this task has collected
 * @owner: of what is collected: an area or a disk
 * @size: of the structure that begins with the &struct tmem_plug; its rest is
 *	zeroes when it is new
 * @run: loads what was collected, in this task or in a work item
 *
 * Return: NULL when there is no plug, or no memory: load at once.
 */
struct tmem_plug *tmem_plug_get(void *owner, size_t size,
				void (*run)(struct tmem_plug *plug))
{
	struct blk_plug_cb *cb;
	struct tmem_plug *plug;

	if (!current->plug || !tmem_plug_wq || !READ_ONCE(tmem_plug_loads))
		return NULL;
	cb = blk_check_plugged(tmem_unplug, owner, size);
	if (!cb)
		return NULL;
	plug = container_of(cb, struct tmem_plug, cb);
	plug->run = run;
	return plug;
}
