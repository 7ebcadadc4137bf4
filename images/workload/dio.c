// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * dio: pages to a disk and back, one request after the other, past the page
 * cache, timed.
 *
 *   dio DEVICE PAGES [random|sequential] [single|cluster] [heap] [drain]
 *
 * Writes the first PAGES pages of DEVICE with O_DIRECT, then reads them, in
 * strides over the disk unless told otherwise, one page or a cluster of eight
 * with each request; a last pass that is not timed checks every byte. One page in four
 * does not compress, the others do to about a third; with "heap" they are those
 * of heap.h. No two are the same, nor the same as in an earlier run.
 *
 * Output, times in nanoseconds a page:
 *   dio DEVICE MODE write MEDIAN MEAN WHOLE
 *   dio DEVICE MODE read MEDIAN MEAN WHOLE
 *   dio DEVICE MODE ok pages=N
 * MODE is random1, random8, sequential1 or sequential8. MEDIAN is that of the
 * requests; MEAN leaves out requests of more than a millisecond, in which the
 * host ran something else; WHOLE is the time of the pass, with "drain" until the
 * driver has done what it does later. Exit status 0 only for ok.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <x86intrin.h>

#include "heap.h"
#include "measure.h"

#define CLUSTER 8UL
/* Contents that there are without "heap", but for the number */
#define KINDS 16UL
/* Prime, and so a step through all pages of any disk that has fewer */
#define STEP 1000003UL
#define OUTLIER_NS 1e6

static unsigned char contents[KINDS][PAGE] __attribute__((aligned(4096)));
/* Written from, and compared with */
static unsigned char out[CLUSTER][PAGE] __attribute__((aligned(4096)));
static unsigned char in[CLUSTER][PAGE] __attribute__((aligned(4096)));

static const char *name;
static char mode[32];
static int fd, of_heap, drains;
static uint64_t requests, cluster = 1, step = STEP, mark, *took;

static void fill_contents(void)
{
	uint64_t word;
	size_t kind, at;

	heap_state.random = 88172645463325252ULL;
	for (kind = 0; kind < KINDS; kind++) {
		for (at = 0; at < PAGE; at += sizeof(word)) {
			word = heap_random();
			/* A byte of two words is new, the others are not */
			if (kind % 4)
				word = (at % 16 ? 0 : word & 0xff) |
				       0x2064726f77206100ULL;
			memcpy(&contents[kind][at], &word, sizeof(word));
		}
	}
}

static void fill(uint64_t request)
{
	uint64_t stamp, index, i;

	for (i = 0; i < cluster; i++) {
		index = request * cluster + i;
		if (of_heap) {
			heap_page(out[i], index, mark);
			continue;
		}
		stamp = index ^ mark << 32;
		memcpy(out[i], contents[index % KINDS], PAGE);
		memcpy(out[i], &stamp, sizeof(stamp));
	}
}

static void fail(const char *what, uint64_t request)
{
	printf("dio %s FAILED %s page=%llu: %s\n", name, what,
	       (unsigned long long)(request * cluster), strerror(errno));
	exit(1);
}

static void write_pages(uint64_t request)
{
	size_t bytes = cluster * PAGE;

	if (pwrite(fd, out, bytes, request * bytes) != (ssize_t)bytes)
		fail("write", request);
}

static void read_pages(uint64_t request)
{
	size_t bytes = cluster * PAGE;

	if (pread(fd, in, bytes, request * bytes) != (ssize_t)bytes)
		fail("read", request);
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/*
 * From before a system call to after it, so that all work of the guest for it is
 * in; by the processor's counter, because reading the clock may take a system
 * call, too. What is written is made before.
 */
static void pass(const char *what, void (*prepare)(uint64_t), void (*one)(uint64_t))
{
	uint64_t start = now_ns(), first = __rdtsc(), before, made = 0, ticks, i, n = 0;
	double tick, sum = 0, whole;

	for (i = 0; i < requests; i++) {
		before = __rdtsc();
		if (prepare)
			prepare(i * step % requests);
		took[i] = __rdtsc();
		made += took[i] - before;
		one(i * step % requests);
		took[i] = __rdtsc() - took[i];
	}
	ticks = __rdtsc() - first;
	tick = (double)(now_ns() - start) / ticks;
	before = now_ns();
	if (drains)
		drain();
	whole = (ticks - made) * tick + (now_ns() - before);
	for (i = 0; i < requests; i++) {
		if (took[i] * tick > OUTLIER_NS)
			continue;
		sum += took[i] * tick;
		n++;
	}
	qsort(took, requests, sizeof(*took), compare);
	printf("dio %s %s %s %.0f %.0f %.0f\n", name, mode, what,
	       took[requests / 2] * tick / cluster,
	       (n ? sum / n : whole / requests) / cluster,
	       whole / requests / cluster);
}

static void check(void)
{
	uint64_t i;

	for (i = 0; i < requests; i++) {
		read_pages(i);
		fill(i);
		if (memcmp(in, out, cluster * PAGE))
			fail("check", i);
	}
}

int main(int argc, char **argv)
{
	const char *order = "random";
	uint64_t pages;
	int i;

	if (argc < 3) {
		fprintf(stderr, "usage: dio DEVICE PAGES [random|sequential] [single|cluster] [heap] [drain]\n");
		return 2;
	}
	name = argv[1];
	pages = strtoull(argv[2], NULL, 10);
	for (i = 3; i < argc; i++) {
		if (!strcmp(argv[i], "sequential")) {
			order = argv[i];
			step = 1;
		} else if (!strcmp(argv[i], "cluster")) {
			cluster = CLUSTER;
		} else if (!strcmp(argv[i], "heap")) {
			of_heap = 1;
		} else if (!strcmp(argv[i], "drain")) {
			drains = 1;
		} else if (strcmp(argv[i], "random") && strcmp(argv[i], "single")) {
			fprintf(stderr, "dio: unknown word %s\n", argv[i]);
			return 2;
		}
	}
	requests = pages / cluster;
	if (!requests || pages % cluster || pages >= STEP) {
		fprintf(stderr, "dio: pages: 1 to %lu, whole requests\n", STEP - 1);
		return 2;
	}
	snprintf(mode, sizeof(mode), "%s%llu", order, (unsigned long long)cluster);
	fd = open(name, O_RDWR | O_DIRECT);
	if (fd < 0)
		fail("open", 0);
	took = calloc(requests, sizeof(*took));
	if (!took)
		fail("memory", 0);
	if (of_heap)
		heap_build();
	else
		fill_contents();
	mark = now_ns() >> 10;

	pass("write", fill, write_pages);
	pass("read", NULL, read_pages);
	check();
	printf("dio %s %s ok pages=%llu\n", name, mode, (unsigned long long)pages);
	return 0;
}
