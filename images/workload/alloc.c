// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * alloc: a task that only allocates, more than there is, and reads it back.
 *
 *   alloc NAME SIZE anonymous|file
 *
 * Writes SIZE MiB of the pages of heap.h, once, to memory of its own or to a file
 * in /tmp, which is in memory too (the kernel then allocates without a page fault
 * for each page); before that an eighth of it, for which there is room, and gives
 * that up again: what allocating takes without reclaim. Then reads all of it in order, with a readahead of eight pages,
 * and again in strides, without; and checks every byte. What it needs for that
 * is locked.
 *
 * Output, for the phases room, fill, sequential and random:
 *   alloc NAME KIND PHASE pages=N ns=N drain_ns=N reclaimed=N in=N out=N
 *   alloc NAME KIND ok
 * "reclaimed" counts pages of anonymous memory and of such files that the kernel
 * got back, "in" and "out" those that it read from its swap disk and wrote there
 * (zswap hides what it keeps), "drain_ns" is what the driver took behind the
 * phase. Exit status 0 only for ok.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "heap.h"
#include "measure.h"

#define STEP 1000003UL
/* Pages of one write to a file */
#define RUN 16UL
#define FILE_NAME "/tmp/alloc"

static const char *name, *kind;
static unsigned char *memory;
static int fd = -1;
static uint64_t pages, mark;
static unsigned char want[PAGE], run[RUN][PAGE] __attribute__((aligned(4096)));

struct counts {
	uint64_t reclaimed, in, out;
};

static void fail(const char *what, uint64_t index)
{
	printf("alloc %s %s FAILED %s page=%llu: %s\n", name, kind, what,
	       (unsigned long long)index, strerror(errno));
	exit(1);
}

static struct counts count(void)
{
	struct counts counts = {};
	FILE *file = fopen("/proc/vmstat", "r");
	unsigned long long value;
	char key[64];

	if (!file)
		fail("vmstat", 0);
	while (fscanf(file, "%63s %llu", key, &value) == 2) {
		if (!strcmp(key, "pgsteal_anon"))
			counts.reclaimed = value;
		else if (!strcmp(key, "pswpin"))
			counts.in = value;
		else if (!strcmp(key, "pswpout"))
			counts.out = value;
	}
	fclose(file);
	return counts;
}

/* Pages of a readahead: 1 << order */
static void set_readahead(int order)
{
	FILE *file = fopen("/proc/sys/vm/page-cluster", "w");

	if (!file || fprintf(file, "%d\n", order) < 0 || fclose(file))
		fail("page-cluster", 0);
}

static void fill(uint64_t unused)
{
	uint64_t index, i;

	(void)unused;
	for (index = 0; index < pages; index++) {
		if (memory) {
			heap_page(memory + index * PAGE, index, mark);
			continue;
		}
		heap_page(run[index % RUN], index, mark);
		if (index % RUN != RUN - 1 && index != pages - 1)
			continue;
		i = index / RUN * RUN;
		if (pwrite(fd, run, (index + 1 - i) * PAGE, i * PAGE) !=
		    (ssize_t)((index + 1 - i) * PAGE))
			fail("write", i);
	}
}

static void give_up(void)
{
	if (memory ? madvise(memory, pages * PAGE, MADV_DONTNEED) : ftruncate(fd, 0))
		fail("give up", 0);
}

static void check(uint64_t step)
{
	uint64_t i, index;
	const unsigned char *have;

	for (i = 0; i < pages; i++) {
		index = i * step % pages;
		have = run[0];
		if (memory)
			have = memory + index * PAGE;
		else if (pread(fd, run[0], PAGE, index * PAGE) != (ssize_t)PAGE)
			fail("read", index);
		heap_page(want, index, mark);
		if (memcmp(have, want, PAGE))
			fail("check", index);
	}
}

static void phase(const char *what, void (*work)(uint64_t), uint64_t step)
{
	struct counts before = count(), after;
	uint64_t start = now_ns(), end, drained;

	work(step);
	end = now_ns();
	drain();
	drained = now_ns();
	after = count();
	printf("alloc %s %s %s pages=%llu ns=%llu drain_ns=%llu reclaimed=%llu in=%llu out=%llu\n",
	       name, kind, what, (unsigned long long)pages,
	       (unsigned long long)(end - start),
	       (unsigned long long)(drained - end),
	       (unsigned long long)(after.reclaimed - before.reclaimed),
	       (unsigned long long)(after.in - before.in),
	       (unsigned long long)(after.out - before.out));
}

int main(int argc, char **argv)
{
	uint64_t whole;

	if (argc < 4) {
		fprintf(stderr, "usage: alloc NAME SIZE anonymous|file\n");
		return 2;
	}
	name = argv[1];
	kind = argv[3];
	pages = strtoull(argv[2], NULL, 10) * (1048576 / PAGE);
	if (!pages || pages >= STEP) {
		fprintf(stderr, "alloc: not a size in MiB: %s\n", argv[2]);
		return 2;
	}
	heap_build();
	mark = now_ns() >> 10;
	if (mlockall(MCL_CURRENT))
		fail("mlockall", 0);
	if (!strcmp(kind, "file")) {
		fd = open(FILE_NAME, O_RDWR | O_CREAT | O_TRUNC, 0600);
		if (fd < 0 || unlink(FILE_NAME))
			fail("open", 0);
	} else {
		memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (memory == MAP_FAILED)
			fail("mmap", 0);
	}
	whole = pages;
	pages = whole / 8;
	/* Once before, so that all is there that is made once */
	fill(0);
	give_up();
	phase("room", fill, 0);
	give_up();
	pages = whole;
	phase("fill", fill, 0);
	set_readahead(3);
	phase("sequential", check, 1);
	set_readahead(0);
	phase("random", check, STEP);
	printf("alloc %s %s ok\n", name, kind);
	return 0;
}
