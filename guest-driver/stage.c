// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: staging pages.
 *
 * A store copies its page into a staging page, and the host gets it later. The
 * guest has the page until the host answered that it has it, so a host that
 * refuses it, or goes away, costs no page. A page that is freed before is never
 * sent.
 *
 * Nothing here sleeps, or allocates after tmem_stage_init(); the lock of the
 * queue is held. This file and key.c know nothing of rings: a test compiles
 * them as a program and compares them with a plain map.
 */
#include <linux/gfp.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "tmem.h"

static struct hlist_head *tmem_stage_bucket(struct tmem_stage *stage,
					    struct tmem_area *area,
					    unsigned long index)
{
	return &stage->buckets[(index ^ (unsigned long)area >> 8) %
			       TMEM_STAGE_BUCKETS];
}

void tmem_stage_free(struct tmem_stage *stage)
{
	struct tmem_staged *staged, *next;

	list_for_each_entry_safe(staged, next, &stage->free, list)
		tmem_staged_free(staged);
	INIT_LIST_HEAD(&stage->free);
	stage->nr = 0;
	stage->nr_free = 0;
}

void tmem_staged_free(struct tmem_staged *staged)
{
	list_del(&staged->list);
	__free_page(staged->page);
	kfree(staged);
}

/* Have @nr staging pages. On an error there are fewer, which can be freed. */
int tmem_stage_init(struct tmem_stage *stage, unsigned int nr)
{
	struct tmem_staged *staged;
	unsigned int i;

	INIT_LIST_HEAD(&stage->free);
	INIT_LIST_HEAD(&stage->queued);
	INIT_LIST_HEAD(&stage->sent);
	INIT_LIST_HEAD(&stage->stuck);
	for (i = 0; i < TMEM_STAGE_BUCKETS; i++)
		INIT_HLIST_HEAD(&stage->buckets[i]);

	while (stage->nr < nr) {
		staged = kzalloc(sizeof(*staged), GFP_KERNEL);
		if (!staged)
			return -ENOMEM;
		staged->page = alloc_page(GFP_KERNEL);
		if (!staged->page) {
			kfree(staged);
			return -ENOMEM;
		}
		INIT_HLIST_NODE(&staged->bucket);
		list_add(&staged->list, &stage->free);
		stage->nr++;
		stage->nr_free++;
	}
	return 0;
}

static void tmem_staged_release(struct tmem_stage *stage,
				struct tmem_staged *staged)
{
	staged->area = NULL;
	staged->state = TMEM_STAGED_FREE;
	list_move(&staged->list, &stage->free);
	stage->nr_free++;
}

/* A free staging page, to be filled without the lock; or NULL. */
struct tmem_staged *tmem_stage_take(struct tmem_stage *stage)
{
	struct tmem_staged *staged;

	staged = list_first_entry_or_null(&stage->free, struct tmem_staged,
					  list);
	if (!staged)
		return NULL;
	list_del_init(&staged->list);
	staged->state = TMEM_STAGED_FILLING;
	stage->nr_free--;
	return staged;
}

/* One that was taken is not needed. */
void tmem_stage_untake(struct tmem_stage *stage, struct tmem_staged *staged)
{
	tmem_staged_release(stage, staged);
}

/* A filled staging page is the page at @index of @area, which has no other. */
void tmem_stage_put(struct tmem_stage *stage, struct tmem_staged *staged,
		    struct tmem_area *area, unsigned long index)
{
	staged->area = area;
	staged->index = index;
	staged->state = TMEM_STAGED_QUEUED;
	list_add_tail(&staged->list, &stage->queued);
	stage->nr_queued++;
	hlist_add_head(&staged->bucket, tmem_stage_bucket(stage, area, index));
}

/* The staging page of a key, or NULL. */
struct tmem_staged *tmem_stage_find(struct tmem_stage *stage,
				    struct tmem_area *area,
				    unsigned long index)
{
	struct tmem_staged *staged;

	hlist_for_each_entry(staged, tmem_stage_bucket(stage, area, index),
			     bucket) {
		if (staged->area == area && staged->index == index)
			return staged;
	}
	return NULL;
}

/**
 * tmem_stage_drop() - forget the staging page of a key
 * @stage: staging pages
 * @area: area
 * @index: index of the page in the area
 *
 * One that is at the host is free when the host has answered.
 */
enum tmem_dropped tmem_stage_drop(struct tmem_stage *stage,
				  struct tmem_area *area, unsigned long index)
{
	struct tmem_staged *staged = tmem_stage_find(stage, area, index);

	if (!staged)
		return TMEM_DROPPED_NONE;
	hlist_del_init(&staged->bucket);
	switch (staged->state) {
	case TMEM_STAGED_SENT:
		staged->area = NULL;
		return TMEM_DROPPED_SENT;
	case TMEM_STAGED_QUEUED:
		stage->nr_queued--;
		break;
	default:
		stage->nr_stuck--;
		break;
	}
	tmem_staged_release(stage, staged);
	return TMEM_DROPPED_HERE;
}

/* The oldest that the host has not seen, or NULL. */
struct tmem_staged *tmem_stage_oldest(struct tmem_stage *stage)
{
	return list_first_entry_or_null(&stage->queued, struct tmem_staged,
					list);
}

/* It enters the ring. */
void tmem_stage_send(struct tmem_stage *stage, struct tmem_staged *staged)
{
	staged->state = TMEM_STAGED_SENT;
	list_move_tail(&staged->list, &stage->sent);
	stage->nr_queued--;
	stage->nr_sent++;
}

/**
 * tmem_stage_answer() - the host has answered the store of a staging page
 * @stage: staging pages
 * @staged: staging page that was sent
 * @kept: whether the host keeps the page
 *
 * The staging page is free afterwards, or stuck: it was refused.
 *
 * Return: whether it still was the page of its key.
 */
bool tmem_stage_answer(struct tmem_stage *stage, struct tmem_staged *staged,
		       bool kept)
{
	bool current_one = staged->area;

	stage->nr_sent--;
	if (current_one && !kept) {
		staged->state = TMEM_STAGED_STUCK;
		list_move_tail(&staged->list, &stage->stuck);
		stage->nr_stuck++;
		return true;
	}
	hlist_del_init(&staged->bucket);
	tmem_staged_release(stage, staged);
	return current_one;
}

static void tmem_stage_requeue(struct tmem_stage *stage,
			       struct tmem_staged *staged)
{
	staged->state = TMEM_STAGED_QUEUED;
	list_move_tail(&staged->list, &stage->queued);
	stage->nr_queued++;
}

/* The host may have room for @max of those that it refused. */
void tmem_stage_unstick(struct tmem_stage *stage, unsigned int max)
{
	struct tmem_staged *staged, *next;

	list_for_each_entry_safe(staged, next, &stage->stuck, list) {
		if (!max--)
			break;
		stage->nr_stuck--;
		tmem_stage_requeue(stage, staged);
	}
}

/* The device was reset: no answer comes for those that are in the ring. */
void tmem_stage_recall(struct tmem_stage *stage)
{
	struct tmem_staged *staged, *next;

	list_for_each_entry_safe(staged, next, &stage->sent, list) {
		if (staged->area)
			tmem_stage_requeue(stage, staged);
		else
			tmem_staged_release(stage, staged);
	}
	stage->nr_sent = 0;
}

static void tmem_stage_take_list(struct tmem_stage *stage,
				 struct list_head *from, unsigned int *count,
				 struct tmem_area *area, struct list_head *to)
{
	struct tmem_staged *staged, *next;

	list_for_each_entry_safe(staged, next, from, list) {
		if (staged->area != area)
			continue;
		hlist_del_init(&staged->bucket);
		list_move_tail(&staged->list, to);
		(*count)--;
		stage->nr--;
	}
}

/* An area keeps its staging pages; none of them is at the host. */
void tmem_stage_detach(struct tmem_stage *stage, struct tmem_area *area,
		       struct list_head *to)
{
	tmem_stage_take_list(stage, &stage->queued, &stage->nr_queued, area,
			     to);
	tmem_stage_take_list(stage, &stage->stuck, &stage->nr_stuck, area, to);
}

static void tmem_stage_drop_list(struct tmem_stage *stage,
				 struct list_head *list,
				 struct tmem_area *area)
{
	struct tmem_staged *staged, *next;

	list_for_each_entry_safe(staged, next, list, list) {
		if (staged->area == area)
			tmem_stage_drop(stage, area, staged->index);
	}
}

/* An area goes. Those at the host are free when the host has answered. */
void tmem_stage_drop_area(struct tmem_stage *stage, struct tmem_area *area)
{
	tmem_stage_drop_list(stage, &stage->queued, area);
	tmem_stage_drop_list(stage, &stage->stuck, area);
	tmem_stage_drop_list(stage, &stage->sent, area);
}
