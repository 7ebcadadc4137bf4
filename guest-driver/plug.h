/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Virtio transcendent memory driver: loads that wait for a plug.
 */
#ifndef _TMEM_PLUG_H
#define _TMEM_PLUG_H

#include <linux/blkdev.h>
#include <linux/workqueue.h>

/**
 * struct tmem_plug - loads that wait for the plug of a task to be flushed
 * @cb: in the plug
 * @work: loads them, when the task of the plug must not sleep
 * @run: loads them
 */
struct tmem_plug {
	struct blk_plug_cb cb;
	struct work_struct work;
	void (*run)(struct tmem_plug *plug);
};

void tmem_plug_init(void);
void tmem_plug_exit(void);
struct tmem_plug *tmem_plug_get(void *owner, size_t size,
				void (*run)(struct tmem_plug *plug));

#endif /* _TMEM_PLUG_H */
