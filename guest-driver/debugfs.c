// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: the file in debugfs.
 *
 * /sys/kernel/debug/tmem/stats has a line "name value" for each counter. Those
 * up to "device" only grow.
 */
#include <linux/debugfs.h>
#include <linux/seq_file.h>

#include "tmem.h"

static const char * const tmem_user_names[TMEM_NR_USERS] = {
	[TMEM_USER_FRONTSWAP] = "frontswap",
	[TMEM_USER_BLOCK] = "block",
};

static const char * const tmem_op_names[TMEM_NR_OP_STATS] = {
	[TMEM_STORES_OK] = "stores_ok",
	[TMEM_STORES_STAGED] = "stores_staged",
	[TMEM_STORES_ZERO] = "stores_zero",
	[TMEM_STORES_NO_SPACE] = "stores_no_space",
	[TMEM_STORES_FROZEN] = "stores_frozen",
	[TMEM_STORES_NO_MEMORY] = "stores_no_memory",
	[TMEM_STORES_REFUSED_OTHER] = "stores_refused_other",
	[TMEM_STORES_WITHHELD] = "stores_withheld",
	[TMEM_STORES_FAILED] = "stores_failed",
	[TMEM_STAGED_DROPPED] = "staged_dropped",
	[TMEM_STAGED_BATCHES] = "staged_batches",
	[TMEM_LOADS_OK] = "loads_ok",
	[TMEM_LOADS_ABSENT] = "loads_absent",
	[TMEM_LOADS_LOST] = "loads_lost",
	[TMEM_LOADS_IO_ERROR] = "loads_io_error",
	[TMEM_LOADS_FAILED] = "loads_failed",
	[TMEM_LOADS_SAVED] = "loads_saved",
	[TMEM_LOADS_STAGED] = "loads_staged",
	[TMEM_LOADS_ZERO] = "loads_zero",
	[TMEM_INVALIDATES] = "invalidates",
	[TMEM_INVALIDATES_SENT] = "invalidates_sent",
	[TMEM_INVALIDATES_OVERTAKEN] = "invalidates_overtaken",
	[TMEM_INVALIDATES_FAILED] = "invalidates_failed",
	[TMEM_INVALIDATE_BATCHES] = "invalidate_batches",
	[TMEM_INVALIDATE_BATCHES_RODE] = "invalidate_batches_rode",
	[TMEM_OBJECT_INVALIDATES] = "object_invalidates",
};

static const char * const tmem_queue_names[TMEM_NR_QUEUE_STATS] = {
	[TMEM_KICKS_PAGE] = "kicks_page",
	[TMEM_KICKS_STAGED] = "kicks_staged",
	[TMEM_KICKS_INVALIDATE] = "kicks_invalidate",
	[TMEM_KICKS_CONTROL] = "kicks_control",
	[TMEM_KICKS_AGAIN] = "kicks_again",
	[TMEM_SLOT_WAITS] = "slot_waits",
	[TMEM_POLL_TIMEOUTS] = "poll_timeouts",
	[TMEM_INTERRUPTS] = "interrupts",
	[TMEM_REQUEST_TIMEOUTS] = "request_timeouts",
	[TMEM_BAD_ANSWERS] = "bad_answers",
	[TMEM_BROKEN] = "broken",
	[TMEM_REVIVED] = "revived",
	[TMEM_EVENTS] = "events",
};

static struct dentry *tmem_debugfs_dir;

/* The device that is shown, the last one that came; protected by the lock */
static struct tmem_dev *tmem_debugfs_dev;
static DEFINE_MUTEX(tmem_debugfs_lock);

static void tmem_debugfs_show_dev(struct seq_file *m, struct tmem_dev *dev)
{
	unsigned long pages[TMEM_NR_USERS] = {};
	unsigned int i, stage = 0, staged = 0, stuck = 0;
	unsigned long pending = 0;
	struct tmem_area *area;

	/* Not the lock that is held while the host is waited for */
	spin_lock(&dev->list_lock);
	list_for_each_entry(area, &dev->areas, list) {
		pages[area->user] += tmem_area_pages(area);
		pending += tmem_area_pending(area);
	}
	spin_unlock(&dev->list_lock);
	for (i = 0; i < dev->nr_queues; i++) {
		struct tmem_stage *s = &dev->queues[i].stage;

		stage += READ_ONCE(s->nr);
		staged += READ_ONCE(s->nr_queued) + READ_ONCE(s->nr_sent) +
			  READ_ONCE(s->nr_stuck);
		stuck += READ_ONCE(s->nr_stuck);
	}

	for (i = 0; i < TMEM_NR_USERS; i++)
		seq_printf(m, "%s_pages %lu\n", tmem_user_names[i], pages[i]);
	seq_printf(m, "pending_invalidates %lu\n", pending);
	seq_printf(m, "stage_pages %u\n", stage);
	seq_printf(m, "staged_pages %u\n", staged);
	seq_printf(m, "stuck_pages %u\n", stuck);
	seq_printf(m, "request_queues %u\n", dev->nr_rings);
	seq_printf(m, "store_batch %u\n", dev->store_batch);
	seq_printf(m, "host_pressure %u\n", READ_ONCE(dev->host_pressure));
	seq_printf(m, "host_limit_bytes %llu\n", READ_ONCE(dev->host_limit));
	seq_printf(m, "host_used_bytes %llu\n", READ_ONCE(dev->host_used));
}

static int tmem_debugfs_show(struct seq_file *m, void *v)
{
	unsigned int user, i;

	for (user = 0; user < TMEM_NR_USERS; user++) {
		for (i = 0; i < TMEM_NR_OP_STATS; i++)
			seq_printf(m, "%s_%s %llu\n", tmem_user_names[user],
				   tmem_op_names[i], tmem_op_count(user, i));
	}
	for (i = 0; i < TMEM_NR_QUEUE_STATS; i++)
		seq_printf(m, "%s %llu\n", tmem_queue_names[i],
			   tmem_queue_count(i));

	mutex_lock(&tmem_debugfs_lock);
	seq_printf(m, "device %u\n", tmem_debugfs_dev ? 1 : 0);
	if (tmem_debugfs_dev)
		tmem_debugfs_show_dev(m, tmem_debugfs_dev);
	mutex_unlock(&tmem_debugfs_lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(tmem_debugfs);

void tmem_debugfs_attach(struct tmem_dev *dev)
{
	mutex_lock(&tmem_debugfs_lock);
	tmem_debugfs_dev = dev;
	mutex_unlock(&tmem_debugfs_lock);
}

void tmem_debugfs_detach(struct tmem_dev *dev)
{
	mutex_lock(&tmem_debugfs_lock);
	if (tmem_debugfs_dev == dev)
		tmem_debugfs_dev = NULL;
	mutex_unlock(&tmem_debugfs_lock);
}

void tmem_debugfs_init(void)
{
	tmem_debugfs_dir = debugfs_create_dir("tmem", NULL);
	debugfs_create_file("stats", 0444, tmem_debugfs_dir, NULL,
			    &tmem_debugfs_fops);
}

void tmem_debugfs_exit(void)
{
	debugfs_remove_recursive(tmem_debugfs_dir);
}
