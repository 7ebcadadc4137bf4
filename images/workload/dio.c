// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * dio: one page after the other to a disk and back, past the page cache, timed.
 *
 *   dio DEVICE PAGES [sequential]
 *
 * Writes the first PAGES pages of DEVICE with one O_DIRECT request each, then
 * reads them, in strides over the disk unless told otherwise; a last pass that
 * is not timed checks every byte. One page in four does not compress, the others
 * do to about a third; no two are the same, as each begins with its number.
 *
 * Output: "dio DEVICE write NS_PER_PAGE", "dio DEVICE read NS_PER_PAGE",
 * "dio DEVICE ok pages=N". Exit status 0 only for ok.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define PAGE 4096UL
/* Contents that there are, but for the number */
#define KINDS 16UL
/* Prime, and so a step through all pages of any disk that has fewer */
#define STEP 1000003UL

static unsigned char contents[KINDS][PAGE] __attribute__((aligned(4096)));
static unsigned char buffer[PAGE] __attribute__((aligned(4096)));

static const char *name;
static int fd;
static uint64_t pages, step = STEP, *took;

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void fill_contents(void)
{
	uint64_t state = 88172645463325252ULL, word;
	size_t kind, at;

	for (kind = 0; kind < KINDS; kind++) {
		for (at = 0; at < PAGE; at += sizeof(word)) {
			word = next_random(&state);
			/* A byte of two words is new, the others are not */
			if (kind % 4)
				word = (at % 16 ? 0 : word & 0xff) |
				       0x2064726f77206100ULL;
			memcpy(&contents[kind][at], &word, sizeof(word));
		}
	}
}

static unsigned char *page(uint64_t index)
{
	unsigned char *content = contents[index % KINDS];

	memcpy(content, &index, sizeof(index));
	return content;
}

static void fail(const char *what, uint64_t index)
{
	printf("dio %s FAILED %s page=%llu: %s\n", name, what,
	       (unsigned long long)index, strerror(errno));
	exit(1);
}

static void write_page(uint64_t index)
{
	if (pwrite(fd, page(index), PAGE, index * PAGE) != (ssize_t)PAGE)
		fail("write", index);
}

static void read_page(uint64_t index)
{
	if (pread(fd, buffer, PAGE, index * PAGE) != (ssize_t)PAGE)
		fail("read", index);
}

static void check_page(uint64_t index)
{
	read_page(index);
	if (memcmp(buffer, page(index), PAGE))
		fail("check", index);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/*
 * Nanoseconds a page: the median, from request to request, so that it includes
 * all work of the guest, and excludes that of other processes of the host. By
 * the processor's counter, because reading the clock may take a system call.
 */
static uint64_t pass(void (*one)(uint64_t index))
{
	uint64_t start = now_ns(), first = __rdtsc(), last = first, now, ns, i;

	for (i = 0; i < pages; i++) {
		one(i * step % pages);
		now = __rdtsc();
		took[i] = now - last;
		last = now;
	}
	ns = now_ns() - start;
	qsort(took, pages, sizeof(*took), compare);
	return took[pages / 2] * (double)ns / (last - first);
}

int main(int argc, char **argv)
{
	uint64_t ns;

	if (argc < 3) {
		fprintf(stderr, "usage: dio DEVICE PAGES [sequential]\n");
		return 2;
	}
	name = argv[1];
	pages = strtoull(argv[2], NULL, 10);
	if (argc > 3 && !strcmp(argv[3], "sequential"))
		step = 1;
	if (!pages || pages >= STEP) {
		fprintf(stderr, "dio: pages: 1 to %lu\n", STEP - 1);
		return 2;
	}
	fd = open(name, O_RDWR | O_DIRECT);
	if (fd < 0)
		fail("open", 0);
	took = calloc(pages, sizeof(*took));
	if (!took)
		fail("memory", 0);
	fill_contents();

	ns = pass(write_page);
	printf("dio %s write %llu\n", name, (unsigned long long)ns);
	ns = pass(read_page);
	printf("dio %s read %llu\n", name, (unsigned long long)ns);
	pass(check_page);
	printf("dio %s ok pages=%llu\n", name, (unsigned long long)pages);
	return 0;
}
