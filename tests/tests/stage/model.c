// SPDX-License-Identifier: GPL-2.0-only
/*
 * stage.c and key.c of the guest driver against a plain map.
 *
 *   model SEED OPERATIONS
 *
 * A host executes the requests of a ring one by one, when it likes, refuses
 * pages when it is full, and is reset now and then. The test stores, loads and
 * gives up pages, and notes in a map what each must be. In between, and at the
 * end, every page has to be found where the driver says it is, with its value;
 * and when all is quiet, the host has what the driver thinks, and nothing else.
 *
 * Prints "model SEED ok ..." with how often each thing happened, or what was
 * wrong, with exit status 1.
 */
#include <stdarg.h>
#include <stdio.h>

#include "tmem.h"

#define AREAS		2
#define KEYS		48
#define STAGE		12
#define BATCH		4
#define RING		24

/* What the map says, beside values */
#define ABSENT		0UL
#define ZERO		1UL
#define LOST		2UL
#define FIRST_VALUE	3UL

enum kind { STAGED, STORE, LOAD, INVALIDATE };

struct request {
	enum kind kind;
	struct tmem_area *area;
	unsigned int count;
	unsigned long index[BATCH];
	struct page *page[BATCH];
	struct tmem_staged *staged[BATCH];
	bool kept[BATCH];
};

static struct tmem_dev dev;
static struct tmem_queue queue = { .dev = &dev };
static struct tmem_area areas[AREAS];
static unsigned long map[AREAS][KEYS], host[AREAS][KEYS];
/*
 * A store or load of it is at the host: its owner does nothing else with it. But
 * two may store one page at once, and then a copy meets a store at the host.
 */
static bool busy[AREAS][KEYS], storing[AREAS][KEYS];

/* Requests that the host executed, and those that it has to execute */
static struct request ring[RING];
static unsigned int nr_ring, nr_executed;

static unsigned long seed, state, next_value = FIRST_VALUE, step;
static unsigned int fullness;
static unsigned long happened[16];
enum { STAGED_OK, DROPPED, REFUSED, STUCK_READ, SYNC, ZEROES, LOADS, RESETS, AREAS_DROPPED, DETACHED, MET, MET_RESETS };
static const char * const what_happened[] = { "staged", "dropped", "refused", "stuck_read", "sync", "zero", "loads", "resets", "swapoffs", "removals", "met", "met_resets" };

void tmem_count_op(enum tmem_user user, enum tmem_op_stat stat, unsigned int n)
{
	(void)user;
	if (stat == TMEM_STAGED_DROPPED)
		happened[DROPPED] += n;
}

static void __attribute__((format(printf, 1, 2), noreturn)) fail(const char *format, ...)
{
	va_list args;

	printf("model %lu FAILED at operation %lu: ", seed, step);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	exit(1);
}

static unsigned long random_below(unsigned long n)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (state >> 11) % n;
}

static bool chance(unsigned int percent)
{
	return random_below(100) < percent;
}

static unsigned int number(struct tmem_area *area)
{
	return area - areas;
}

/* The host executes the next request. */
static void execute(void)
{
	struct request *r = &ring[nr_executed++];
	unsigned long *held = host[number(r->area)];
	unsigned int i;

	for (i = 0; i < r->count; i++) {
		unsigned long *page = &held[r->index[i]];

		switch (r->kind) {
		case STAGED:
		case STORE:
			r->kept[i] = !chance(fullness);
			*page = r->kept[i] ? r->page[i]->value : ABSENT;
			break;
		case LOAD:
			r->page[i]->value = *page;
			break;
		case INVALIDATE:
			*page = ABSENT;
			break;
		}
	}
}

static void end_of(struct request *r)
{
	unsigned int a = number(r->area), i;
	unsigned long *expected;

	for (i = 0; i < r->count; i++) {
		expected = &map[a][r->index[i]];
		switch (r->kind) {
		case STAGED:
			if (!r->kept[i])
				happened[REFUSED]++;
			tmem_end_staged(r->area, &queue, r->staged[i], r->kept[i]);
			break;
		case STORE:
			tmem_end_store(r->area, &queue, r->index[i], r->kept[i]);
			if (!r->kept[i] && *expected == r->page[i]->value)
				*expected = ABSENT;
			busy[a][r->index[i]] = false;
			storing[a][r->index[i]] = false;
			free(r->page[i]);
			break;
		case LOAD:
			happened[LOADS]++;
			if (r->page[i]->value != *expected)
				fail("page %lu of area %u was loaded as %lu and is %lu",
				     r->index[i], a, r->page[i]->value, *expected);
			busy[a][r->index[i]] = false;
			free(r->page[i]);
			break;
		case INVALIDATE:
			tmem_clear_present(r->area, &queue, r->index[i]);
			break;
		}
	}
}

/* The driver takes the answers from the ring, in its order. */
static void reap(void)
{
	unsigned int i;

	for (i = 0; i < nr_executed; i++)
		end_of(&ring[i]);
	memmove(ring, ring + nr_executed, (nr_ring - nr_executed) * sizeof(*ring));
	nr_ring -= nr_executed;
	nr_executed = 0;
}

static struct request *add(enum kind kind, struct tmem_area *area)
{
	struct request *r = &ring[nr_ring++];

	memset(r, 0, sizeof(*r));
	r->kind = kind;
	r->area = area;
	return r;
}

static void send_batch(void)
{
	struct tmem_staged *staged = tmem_stage_oldest(&queue.stage);
	struct request *r;

	if (!staged || nr_ring == RING)
		return;
	r = add(STAGED, staged->area);
	while (staged && staged->area == r->area && r->count < BATCH) {
		r->staged[r->count] = staged;
		r->page[r->count] = staged->page;
		r->index[r->count++] = staged->index;
		tmem_begin_staged(&queue, staged);
		staged = tmem_stage_oldest(&queue.stage);
	}
}

static void send_pending(struct tmem_area *area)
{
	struct request *r;
	unsigned long i;

	if (!area->queue->count || nr_ring == RING)
		return;
	r = add(INVALIDATE, area);
	for (i = 0; i < KEYS && r->count < BATCH; i++) {
		if (!__test_and_clear_bit(i, area->pending))
			continue;
		area->queue->count--;
		r->index[r->count++] = i;
	}
	if (!r->count)
		fail("area %u has %lu pending pages and no bits", number(area), area->queue->count + 0UL);
}

static void store(struct tmem_area *area, unsigned long index)
{
	unsigned long value = chance(20) ? ZERO : next_value++;
	struct tmem_staged *staged = NULL;
	struct request *r = NULL;

	if (value == ZERO) {
		tmem_put_zero(area, &queue, index);
		happened[ZEROES]++;
	} else {
		if (!queue.stage.nr_stuck && !chance(10))
			staged = tmem_stage_take(&queue.stage);
		if (!staged && (nr_ring == RING || busy[number(area)][index]))
			return;
		if (staged && chance(2)) {
			tmem_stage_untake(&queue.stage, staged);
			return;
		}
		if (staged) {
			staged->page->value = value;
			tmem_put_staged(area, &queue, index, staged);
			happened[STAGED_OK]++;
		} else {
			if (tmem_begin_store(area, &queue, index, NULL))
				fail("a store of new data was not begun");
			r = add(STORE, area);
			r->index[r->count] = index;
			r->page[r->count] = alloc_page(0);
			r->page[r->count++]->value = value;
			busy[number(area)][index] = true;
			storing[number(area)][index] = true;
			happened[SYNC]++;
		}
	}
	if (busy[number(area)][index] && !r)
		happened[MET]++;
	map[number(area)][index] = value;
}

static void load(struct tmem_area *area, unsigned long index)
{
	unsigned long expected = map[number(area)][index];
	enum tmem_place place;
	struct page *copy = NULL;
	struct request *r;

	place = tmem_find(area, &queue, index, &copy);
	switch (place) {
	case TMEM_AT_STAGE:
	case TMEM_AT_SAVED:
		if (copy->value != expected)
			fail("the copy of page %lu of area %u is %lu and not %lu",
			     index, number(area), copy->value, expected);
		if (queue.stage.nr_stuck)
			happened[STUCK_READ]++;
		return;
	case TMEM_AT_HOST:
		if (nr_ring == RING)
			return;
		r = add(LOAD, area);
		r->index[r->count] = index;
		r->page[r->count++] = alloc_page(0);
		busy[number(area)][index] = true;
		return;
	case TMEM_AT_ZERO:
		if (expected == ZERO)
			return;
		break;
	case TMEM_AT_LOST:
		if (expected == LOST)
			return;
		break;
	case TMEM_AT_NOWHERE:
		if (expected == ABSENT)
			return;
		break;
	}
	fail("page %lu of area %u is %lu, and the driver looks at place %u", index,
	     number(area), expected, place);
}

static void invalidate(struct tmem_area *area, unsigned long index)
{
	tmem_give_up(area, &queue, index);
	map[number(area)][index] = ABSENT;
}

/* The host is gone, with the ring and all that it has. */
static void reset(void)
{
	unsigned int a, i, j;
	struct request *r;
	unsigned long k;

	happened[RESETS]++;
	for (i = 0; i < nr_ring; i++) {
		r = &ring[i];
		a = number(r->area);
		for (j = 0; j < r->count; j++) {
			if (r->kind != STORE && r->kind != LOAD)
				continue;
			busy[a][r->index[j]] = false;
			storing[a][r->index[j]] = false;
			free(r->page[j]);
			if (r->kind == STORE)
				invalidate(r->area, r->index[j]);
		}
	}
	nr_ring = 0;
	nr_executed = 0;
	memset(host, 0, sizeof(host));
	tmem_stage_recall(&queue.stage);
	if (queue.stage.nr_sent)
		fail("%u staging pages are sent to no host", queue.stage.nr_sent);
	for (a = 0; a < AREAS; a++) {
		for (k = 0; k < KEYS; k++) {
			if (__test_and_clear_bit(k, areas[a].pending))
				areas[a].queue->count--;
			if (!tmem_clear_present(&areas[a], &queue, k))
				continue;
			__set_bit(k, areas[a].lost);
			if (tmem_stage_find(&queue.stage, &areas[a], k))
				happened[MET_RESETS]++;
			if (map[a][k] >= FIRST_VALUE && !tmem_stage_find(&queue.stage, &areas[a], k))
				map[a][k] = LOST;
		}
		if (areas[a].queue->count)
			fail("area %u counts pending pages that it has not", a);
	}
}

static void check_counts(void)
{
	struct tmem_stage *s = &queue.stage;

	if (s->nr_free + s->nr_queued + s->nr_sent + s->nr_stuck != s->nr)
		fail("of %u staging pages %u are free, %u queued, %u sent, %u stuck", s->nr,
		     s->nr_free, s->nr_queued, s->nr_sent, s->nr_stuck);
}

static void finish_ring(void)
{
	while (nr_executed < nr_ring)
		execute();
	reap();
}

/* Nothing is on its way and there is room: both sides have the same. */
static void quiesce(void)
{
	unsigned int a;
	unsigned long k;

	fullness = 0;
	finish_ring();
	tmem_stage_unstick(&queue.stage, STAGE);
	while (queue.stage.nr_queued) {
		send_batch();
		finish_ring();
	}
	for (a = 0; a < AREAS; a++) {
		while (areas[a].queue->count) {
			send_pending(&areas[a]);
			finish_ring();
		}
		for (k = 0; k < KEYS; k++) {
			bool held = test_bit(k, areas[a].present);
			unsigned long due = held ? map[a][k] : ABSENT;

			/* The host keeps a store that zeroes met on its way. */
			if (held && map[a][k] == ZERO && host[a][k] != ABSENT)
				due = host[a][k];
			if (host[a][k] != due)
				fail("page %lu of area %u: the host has %lu, the map says %lu, the driver that it is %sthere",
				     k, a, host[a][k], map[a][k], held ? "" : "not ");
			load(&areas[a], k);
			finish_ring();
		}
	}
	if (queue.stage.nr_free != queue.stage.nr)
		fail("%u of %u staging pages are free when all is quiet", queue.stage.nr_free, queue.stage.nr);
}

static void free_list(struct list_head *list)
{
	struct tmem_staged *staged, *next;

	list_for_each_entry_safe(staged, next, list, list)
		tmem_staged_free(staged);
}

/* swapoff: the area begins anew. */
static void drop_area(struct tmem_area *area)
{
	unsigned long k;

	happened[AREAS_DROPPED]++;
	tmem_stage_drop_area(&queue.stage, area);
	finish_ring();
	for (k = 0; k < KEYS; k++) {
		if (tmem_stage_find(&queue.stage, area, k))
			fail("page %lu of an area that is gone is staged", k);
		host[number(area)][k] = ABSENT;
		map[number(area)][k] = ABSENT;
		tmem_clear_present(area, &queue, k);
		if (__test_and_clear_bit(k, area->pending))
			area->queue->count--;
		__clear_bit(k, area->zero);
		__clear_bit(k, area->lost);
	}
}

/* The driver is unbound: the area keeps what the host never took. */
static void detach(struct tmem_area *area)
{
	unsigned int before = queue.stage.nr, kept = 0;
	struct tmem_staged *staged, *next;
	struct list_head list;

	happened[DETACHED]++;
	reset();
	INIT_LIST_HEAD(&list);
	tmem_stage_detach(&queue.stage, area, &list);
	list_for_each_entry_safe(staged, next, &list, list) {
		kept++;
		if (staged->page->value != map[number(area)][staged->index])
			fail("a page that the area keeps is %lu and not %lu",
			     staged->page->value, map[number(area)][staged->index]);
		map[number(area)][staged->index] = ABSENT;
	}
	if (queue.stage.nr + kept != before)
		fail("%u staging pages, %u of them kept, are %u", before, kept, queue.stage.nr);
	check_counts();
	/* The next device */
	free_list(&list);
	drop_area(area);
	while (queue.stage.nr < STAGE) {
		staged = kzalloc(sizeof(*staged), 0);
		staged->page = alloc_page(0);
		list_add(&staged->list, &queue.stage.free);
		queue.stage.nr++;
		queue.stage.nr_free++;
	}
}

static void one_operation(void)
{
	struct tmem_area *area = &areas[random_below(AREAS)];
	unsigned long index = random_below(KEYS), dice = random_below(1000);

	if (dice < 700 && busy[number(area)][index] &&
	    !(dice < 320 && storing[number(area)][index]))
		return;
	if (dice < 320)
		store(area, index);
	else if (dice < 550)
		load(area, index);
	else if (dice < 700)
		invalidate(area, index);
	else if (dice < 760)
		send_batch();
	else if (dice < 800)
		send_pending(area);
	else if (dice < 900 && nr_executed < nr_ring)
		execute();
	else if (dice < 960)
		reap();
	else if (dice < 975)
		tmem_stage_unstick(&queue.stage, random_below(STAGE));
	else if (dice < 985)
		fullness = chance(50) ? 0 : random_below(101);
	else if (dice < 990 && chance(10))
		reset();
	else if (dice < 991 && chance(20))
		drop_area(area);
	else if (dice < 992 && chance(10))
		detach(area);
	else if (dice < 995 && chance(10))
		quiesce();
}

static void start(void)
{
	unsigned int a;

	if (tmem_stage_init(&queue.stage, STAGE))
		fail("no staging pages");
	for (a = 0; a < AREAS; a++) {
		areas[a].nr_pages = KEYS;
		areas[a].nr_queues = 1;
		areas[a].present = calloc(1, sizeof(long));
		areas[a].pending = calloc(1, sizeof(long));
		areas[a].zero = calloc(1, sizeof(long));
		areas[a].lost = calloc(1, sizeof(long));
		areas[a].queue = calloc(1, sizeof(*areas[a].queue));
		areas[a].queue->blocks = calloc(1, sizeof(long));
	}
}

static void end(void)
{
	unsigned int a;

	quiesce();
	tmem_stage_free(&queue.stage);
	for (a = 0; a < AREAS; a++) {
		free(areas[a].queue->blocks);
		free(areas[a].queue);
		free(areas[a].lost);
		free(areas[a].zero);
		free(areas[a].pending);
		free(areas[a].present);
	}
}

int main(int argc, char **argv)
{
	unsigned long operations;
	unsigned int i;

	if (argc != 3) {
		fprintf(stderr, "usage: model SEED OPERATIONS\n");
		return 2;
	}
	seed = strtoul(argv[1], NULL, 10);
	operations = strtoul(argv[2], NULL, 10);
	state = seed * 0x9e3779b97f4a7c15UL + 1;
	start();
	for (step = 0; step < operations; step++) {
		one_operation();
		check_counts();
	}
	end();
	printf("model %lu ok operations=%lu", seed, operations);
	for (i = 0; i < sizeof(what_happened) / sizeof(*what_happened); i++)
		printf(" %s=%lu", what_happened[i], happened[i]);
	printf("\n");
	return 0;
}
