// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: counters, one set for each CPU.
 */
#include <linux/percpu.h>

#include "tmem.h"

struct tmem_counters {
	u64 op[TMEM_NR_USERS][TMEM_NR_OP_STATS];
	u64 queue[TMEM_NR_QUEUE_STATS];
};

static DEFINE_PER_CPU(struct tmem_counters, tmem_counters);

void tmem_count_op(enum tmem_user user, enum tmem_op_stat stat, unsigned int n)
{
	this_cpu_add(tmem_counters.op[user][stat], n);
}

void tmem_count(enum tmem_queue_stat stat)
{
	this_cpu_inc(tmem_counters.queue[stat]);
}

/* Sum over all CPUs. */
u64 tmem_op_count(enum tmem_user user, enum tmem_op_stat stat)
{
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += per_cpu(tmem_counters, cpu).op[user][stat];
	return sum;
}

/* Sum over all CPUs. */
u64 tmem_queue_count(enum tmem_queue_stat stat)
{
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += per_cpu(tmem_counters, cpu).queue[stat];
	return sum;
}
