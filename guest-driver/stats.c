// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: counters.
 *
 * /sys/kernel/debug/tmem/stats has a line "name value" for each. Those up to
 * "device" only grow.
 */
#include <linux/debugfs.h>
#include <linux/percpu.h>
#include <linux/seq_file.h>

#include "tmem.h"

struct tmem_counters {
	u64 op[TMEM_NR_USERS][TMEM_NR_OP_STATS];
	u64 queue[TMEM_NR_QUEUE_STATS];
};

static DEFINE_PER_CPU(struct tmem_counters, tmem_counters);

static const char * const tmem_user_names[TMEM_NR_USERS] = {
	[TMEM_USER_FRONTSWAP] = "frontswap",
	[TMEM_USER_BLOCK] = "block",
};

static const char * const tmem_op_names[TMEM_NR_OP_STATS] = {
	[TMEM_STORES_OK] = "stores_ok",
	[TMEM_STORES_NO_SPACE] = "stores_no_space",
	[TMEM_STORES_FROZEN] = "stores_frozen",
	[TMEM_STORES_NO_MEMORY] = "stores_no_memory",
	[TMEM_STORES_REFUSED_OTHER] = "stores_refused_other",
	[TMEM_STORES_WITHHELD] = "stores_withheld",
	[TMEM_STORES_FAILED] = "stores_failed",
	[TMEM_LOADS_OK] = "loads_ok",
	[TMEM_LOADS_ABSENT] = "loads_absent",
	[TMEM_LOADS_LOST] = "loads_lost",
	[TMEM_LOADS_IO_ERROR] = "loads_io_error",
	[TMEM_LOADS_FAILED] = "loads_failed",
	[TMEM_LOADS_SAVED] = "loads_saved",
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

static struct dentry *tmem_debugfs;

/* The device that is shown, the last one that came; protected by the lock */
static struct tmem_dev *tmem_stats_dev;
static DEFINE_MUTEX(tmem_stats_lock);

void tmem_count_op(enum tmem_user user, enum tmem_op_stat stat, unsigned int n)
{
	this_cpu_add(tmem_counters.op[user][stat], n);
}

void tmem_count(enum tmem_queue_stat stat)
{
	this_cpu_inc(tmem_counters.queue[stat]);
}

static void tmem_stats_show_dev(struct seq_file *m, struct tmem_dev *dev)
{
	unsigned long pages[TMEM_NR_USERS] = {};
	unsigned long pending = 0;
	struct tmem_area *area;
	unsigned int i;

	mutex_lock(&dev->lock);
	list_for_each_entry(area, &dev->areas, list) {
		pages[area->user] += tmem_area_pages(area);
		pending += tmem_area_pending(area);
	}
	mutex_unlock(&dev->lock);

	for (i = 0; i < TMEM_NR_USERS; i++)
		seq_printf(m, "%s_pages %lu\n", tmem_user_names[i], pages[i]);
	seq_printf(m, "pending_invalidates %lu\n", pending);
	seq_printf(m, "request_queues %u\n", dev->nr_queues);
	seq_printf(m, "host_pressure %u\n", READ_ONCE(dev->host_pressure));
	seq_printf(m, "host_limit_bytes %llu\n", READ_ONCE(dev->host_limit));
	seq_printf(m, "host_used_bytes %llu\n", READ_ONCE(dev->host_used));
}

static int tmem_stats_show(struct seq_file *m, void *v)
{
	unsigned int user, i;
	u64 sum;
	int cpu;

	for (user = 0; user < TMEM_NR_USERS; user++) {
		for (i = 0; i < TMEM_NR_OP_STATS; i++) {
			sum = 0;
			for_each_possible_cpu(cpu)
				sum += per_cpu(tmem_counters, cpu).op[user][i];
			seq_printf(m, "%s_%s %llu\n", tmem_user_names[user],
				   tmem_op_names[i], sum);
		}
	}
	for (i = 0; i < TMEM_NR_QUEUE_STATS; i++) {
		sum = 0;
		for_each_possible_cpu(cpu)
			sum += per_cpu(tmem_counters, cpu).queue[i];
		seq_printf(m, "%s %llu\n", tmem_queue_names[i], sum);
	}

	mutex_lock(&tmem_stats_lock);
	seq_printf(m, "device %u\n", tmem_stats_dev ? 1 : 0);
	if (tmem_stats_dev)
		tmem_stats_show_dev(m, tmem_stats_dev);
	mutex_unlock(&tmem_stats_lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(tmem_stats);

void tmem_stats_attach(struct tmem_dev *dev)
{
	mutex_lock(&tmem_stats_lock);
	tmem_stats_dev = dev;
	mutex_unlock(&tmem_stats_lock);
}

void tmem_stats_detach(struct tmem_dev *dev)
{
	mutex_lock(&tmem_stats_lock);
	if (tmem_stats_dev == dev)
		tmem_stats_dev = NULL;
	mutex_unlock(&tmem_stats_lock);
}

void tmem_stats_init(void)
{
	tmem_debugfs = debugfs_create_dir("tmem", NULL);
	debugfs_create_file("stats", 0444, tmem_debugfs, NULL,
			    &tmem_stats_fops);
}

void tmem_stats_exit(void)
{
	debugfs_remove_recursive(tmem_debugfs);
}
