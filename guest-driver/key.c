// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: the state of one page of an area.
 *
 * Where a page is, in the order in which a load looks:
 *   zero	nowhere: all its bytes are zero
 *   staged	in a staging page, stage.c
 *   saved	in memory of the guest, since it slept
 *   lost	nowhere: the device was given up
 *   present	at the host
 * A store takes it out of the others, but a page may be present in addition
 * while two stores of it meet. A page is pending when the host has data that it
 * need not keep and does not know that yet.
 *
 * The lock of the page's queue is held. The host executes what is in the ring
 * in order; so the change of a bit and the entry into the ring are one step.
 */
#include <linux/bitops.h>
#include <linux/mm.h>

#include "tmem.h"

void tmem_set_present(struct tmem_area *area, struct tmem_queue *q,
		      unsigned long index)
{
	if (!__test_and_set_bit(index, area->present))
		area->queue[q->index].pages++;
}

bool tmem_clear_present(struct tmem_area *area, struct tmem_queue *q,
			unsigned long index)
{
	if (!__test_and_clear_bit(index, area->present))
		return false;
	area->queue[q->index].pages--;
	return true;
}

static bool tmem_is_lost(struct tmem_area *area, unsigned long index)
{
	unsigned long *lost = READ_ONCE(area->lost);

	return lost && test_bit(index, lost);
}

static void tmem_clear_lost(struct tmem_area *area, unsigned long index)
{
	unsigned long *lost = READ_ONCE(area->lost);

	if (lost)
		__clear_bit(index, lost);
}

/* Drop what is saved of a page. */
bool tmem_clear_saved(struct tmem_area *area, unsigned long index)
{
	struct page *page;

	if (xa_empty(&area->saved))
		return false;
	xa_lock(&area->saved);
	page = __xa_erase(&area->saved, index);
	xa_unlock(&area->saved);
	if (!page)
		return false;
	put_page(page);
	return true;
}

/* It is in the guest no more. Return: whether it may be on its way to the host. */
static bool tmem_drop_copies(struct tmem_area *area, struct tmem_queue *q,
			     unsigned long index)
{
	enum tmem_dropped dropped = tmem_stage_drop(&q->stage, area, index);

	if (dropped == TMEM_DROPPED_HERE)
		tmem_count_op(area->user, TMEM_STAGED_DROPPED, 1);
	if (test_bit(index, area->zero))
		clear_bit(index, area->zero);
	tmem_clear_lost(area, index);
	return tmem_clear_saved(area, index) || dropped == TMEM_DROPPED_SENT;
}

/**
 * tmem_give_up() - a page is not wanted any more
 * @area: area
 * @q: queue of the page, its lock is held
 * @index: index of the page in the area
 *
 * A page at the host becomes pending, and so does one that is on its way.
 */
void tmem_give_up(struct tmem_area *area, struct tmem_queue *q,
		  unsigned long index)
{
	struct tmem_pending *p = &area->queue[q->index];
	bool on_its_way = tmem_drop_copies(area, q, index);

	if (!tmem_clear_present(area, q, index) && !on_its_way)
		return;
	if (__test_and_set_bit(index, area->pending))
		return;
	__set_bit((index >> TMEM_BLOCK_SHIFT) / area->nr_queues, p->blocks);
	p->count++;
	tmem_count_op(area->user, TMEM_INVALIDATES, 1);
}

/* The new data are zeroes. */
void tmem_put_zero(struct tmem_area *area, struct tmem_queue *q,
		   unsigned long index)
{
	tmem_give_up(area, q, index);
	set_bit(index, area->zero);
}

/* The new data are in a staging page. */
void tmem_put_staged(struct tmem_area *area, struct tmem_queue *q,
		     unsigned long index, struct tmem_staged *staged)
{
	tmem_give_up(area, q, index);
	tmem_stage_put(&q->stage, staged, area, index);
}

/* A store enters the ring: it replaces what the host has. */
static void tmem_not_pending(struct tmem_area *area, struct tmem_queue *q,
			     unsigned long index)
{
	if (!__test_and_clear_bit(index, area->pending))
		return;
	area->queue[q->index].count--;
	tmem_count_op(area->user, TMEM_INVALIDATES_OVERTAKEN, 1);
}

/**
 * tmem_begin_store() - a store of new data enters the ring
 * @area: area
 * @q: queue of the page
 * @index: index of the page in the area
 * @saved: page in tmem_area.saved which is stored again, or NULL for new data
 *
 * Return: 0, or -ENOENT: the saved page was given up meanwhile.
 */
int tmem_begin_store(struct tmem_area *area, struct tmem_queue *q,
		     unsigned long index, struct page *saved)
{
	if (!saved)
		tmem_drop_copies(area, q, index);
	else if (xa_load(&area->saved, index) != saved)
		return -ENOENT;
	tmem_not_pending(area, q, index);
	return 0;
}

/* The answer to such a store */
void tmem_end_store(struct tmem_area *area, struct tmem_queue *q,
		    unsigned long index, bool kept)
{
	if (!kept)
		tmem_clear_present(area, q, index);
	else if (!test_bit(index, area->pending))
		tmem_set_present(area, q, index);
}

/* A staging page enters the ring. */
void tmem_begin_staged(struct tmem_queue *q, struct tmem_staged *staged)
{
	tmem_clear_lost(staged->area, staged->index);
	tmem_not_pending(staged->area, q, staged->index);
	tmem_stage_send(&q->stage, staged);
}

/* The answer to it; @area is that of the request. */
void tmem_end_staged(struct tmem_area *area, struct tmem_queue *q,
		     struct tmem_staged *staged, bool kept)
{
	unsigned long index = staged->index;

	if (!tmem_stage_answer(&q->stage, staged, kept))
		return;
	if (kept)
		tmem_set_present(area, q, index);
	else
		tmem_clear_present(area, q, index);
}

/**
 * tmem_find() - where a page is
 * @area: area
 * @q: queue of the page
 * @index: index of the page in the area
 * @copy: set to the copy in the guest, for TMEM_AT_STAGE and TMEM_AT_SAVED
 */
enum tmem_place tmem_find(struct tmem_area *area, struct tmem_queue *q,
			  unsigned long index, struct page **copy)
{
	struct tmem_staged *staged = tmem_stage_find(&q->stage, area, index);

	if (staged) {
		*copy = staged->page;
		return TMEM_AT_STAGE;
	}
	if (test_bit(index, area->zero))
		return TMEM_AT_ZERO;
	*copy = xa_load(&area->saved, index);
	if (*copy)
		return TMEM_AT_SAVED;
	if (tmem_is_lost(area, index))
		return TMEM_AT_LOST;
	return test_bit(index, area->present) ? TMEM_AT_HOST : TMEM_AT_NOWHERE;
}
