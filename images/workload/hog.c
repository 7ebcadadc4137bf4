// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * hog: works on more memory than the guest has, and checks every byte.
 *
 *   hog size=160M [phases=fill] [kinds=zero,same,text,pointer,random]
 *       [threads=1] [procs=1] [children=2] [seed=1]
 *
 * The content of a page follows from (seed, page index, round it was last
 * written in), so any page can be checked at any time without a second copy.
 *
 * Phases, in the order given; a last full verify follows whatever was asked:
 *   fill       write every page
 *   verify     check every page in order
 *   random     check every page in random order
 *   overwrite  in random order: check a page, rewrite every other one
 *   drop       give up runs of pages (madvise, munmap), check that they read as
 *              zero, refill half of them
 *   fork       children check the pages they share with us, rewrite a quarter
 *              of them in their own copy, check again; so do we meanwhile
 *   wait       make a file /tmp/waiting, then take away /tmp/go when it comes
 *   pageout    ask the kernel to swap all of it out (MADV_PAGEOUT), and nothing else
 *   corrupt    flip one bit of one page: the verify after it must fail
 *
 * Output: "progress phase=P pages=N done=N", "phase P ms=N", and at the end
 * "verify ok pages=N bytes=N checked=N ms=N majflt=N minflt=N" or
 * "verify FAILED page=N offset=N ...". Exit status 0 only for ok.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

#define PAGE 4096UL
#define RUN 16UL	/* pages given up together by drop */
#define MAX_THREADS 32
#define MAX_KINDS 5

enum kind { ZERO, SAME, TEXT, POINTER, RANDOM };
static const char *const kind_names[MAX_KINDS] = {
	"zero", "same", "text", "pointer", "random",
};

static enum kind kinds[MAX_KINDS] = { ZERO, SAME, TEXT, POINTER, RANDOM };
static size_t kind_count = MAX_KINDS;
static uint64_t seed = 1;
static size_t pages;
static unsigned char *base;
static unsigned char *written_in;	/* per page: round, 0 = reads as zero */
static unsigned char current_round;	/* raised by one per writing phase */
static int threads = 1;
static int children = 2;
static int process_index;
static uint64_t checked;		/* pages compared so far, all threads */
static uint64_t done;			/* pages of the running phase */
static uint64_t last_shown;
static const char *phase_name = "";

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* One write per line, so that lines of several processes do not mix. */
static void say(const char *format, ...)
{
	char line[256];
	va_list args;
	int len;

	va_start(args, format);
	len = vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	if (len > (int)sizeof(line) - 1)
		len = sizeof(line) - 1;
	if (write(1, line, (size_t)len) < 0)
		_exit(4);
}

static void die(const char *what)
{
	say("hog: %s: %s\n", what, strerror(errno));
	_exit(3);
}

static uint64_t mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ULL;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

static uint64_t next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void make_text(unsigned char *out, uint64_t *rng)
{
	static const char *const words[32] = {
		"memory", "guest", "page", "the", "of", "swap", "and", "pool",
		"host", "a", "to", "driver", "store", "load", "is", "in",
		"queue", "domain", "that", "kernel", "budget", "slot", "for",
		"compressed", "with", "segment", "key", "index", "it", "as",
		"device", "machine",
	};
	size_t at = 0;

	while (at < PAGE) {
		const char *word = words[next(rng) >> 59];
		size_t len = strlen(word);

		if (len > PAGE - at)
			len = PAGE - at;
		memcpy(out + at, word, len);
		at += len;
		if (at < PAGE)
			out[at++] = (next(rng) >> 60) ? ' ' : '\n';
	}
}

/* What a heap of linked objects looks like: pointers close together, small
 * numbers, nulls.
 */
static void make_pointers(uint64_t *out, uint64_t *rng)
{
	uint64_t heap = 0x00007f0000000000ULL | (next(rng) & 0xffffff0000ULL);

	for (size_t i = 0; i < PAGE / 8; i++) {
		uint64_t r = next(rng);

		if ((r & 3) == 0)
			out[i] = 0;
		else if ((r & 3) == 1)
			out[i] = (r >> 8) & 0xff;
		else
			out[i] = heap + ((r >> 16) & 0xfff0);
	}
}

static enum kind kind_of(size_t page)
{
	return kinds[page % kind_count];
}

static void make_page(unsigned char *out, uint64_t s, size_t page, unsigned int round)
{
	uint64_t rng = mix(s * 0x9e3779b97f4a7c15ULL + page * 257 + round) | 1;
	uint64_t *words = (uint64_t *)out;
	uint64_t value;

	if (!round) {
		memset(out, 0, PAGE);
		return;
	}
	switch (kind_of(page)) {
	case ZERO:
		memset(out, 0, PAGE);
		break;
	case SAME:
		value = next(&rng);
		for (size_t i = 0; i < PAGE / 8; i++)
			words[i] = value;
		break;
	case TEXT:
		make_text(out, &rng);
		break;
	case POINTER:
		make_pointers(words, &rng);
		break;
	case RANDOM:
		for (size_t i = 0; i < PAGE / 8; i++)
			words[i] = next(&rng);
		break;
	}
}

static void check_page(uint64_t s, size_t page, unsigned int round)
{
	static __thread unsigned char want[PAGE] __attribute__((aligned(64)));
	const unsigned char *have = base + page * PAGE;
	size_t at = 0;

	make_page(want, s, page, round);
	if (memcmp(want, have, PAGE)) {
		while (want[at] == have[at])
			at++;
		say("verify FAILED page=%zu offset=%zu kind=%s round=%u phase=%s process=%d want=%02x have=%02x\n",
		    page, at, kind_names[kind_of(page)], round, phase_name,
		    process_index, want[at], have[at]);
		_exit(1);
	}
	__atomic_fetch_add(&checked, 1, __ATOMIC_RELAXED);
}

static void write_page(size_t page)
{
	make_page(base + page * PAGE, seed, page, current_round);
	written_in[page] = current_round;
}

/* One line a second at most, whichever thread comes by. */
static void step(size_t count)
{
	uint64_t total = __atomic_add_fetch(&done, count, __ATOMIC_RELAXED);
	uint64_t shown = __atomic_load_n(&last_shown, __ATOMIC_RELAXED);
	uint64_t now;

	if (total % 64 >= count && total != pages)
		return;
	now = now_ms();
	if (now - shown < 1000)
		return;
	if (__atomic_compare_exchange_n(&last_shown, &shown, now, 0,
					__ATOMIC_RELAXED, __ATOMIC_RELAXED))
		say("progress phase=%s pages=%zu done=%llu\n", phase_name, pages,
		    (unsigned long long)total);
}

/* A walk that visits every page of [lo, hi) once, in no order a read-ahead
 * could follow: i * stride mod n, with a stride that has no factor in common.
 */
static size_t pick_stride(size_t n)
{
	size_t stride = n * 5 / 13 + 1;
	size_t a, b;

	for (;; stride++) {
		a = n;
		b = stride;
		while (b) {
			size_t rest = a % b;

			a = b;
			b = rest;
		}
		if (a == 1)
			return stride;
	}
}

struct range {
	size_t lo, hi;
	void (*work)(size_t lo, size_t hi);
};

static void do_fill(size_t lo, size_t hi)
{
	for (size_t page = lo; page < hi; page++) {
		write_page(page);
		step(1);
	}
}

static void do_verify(size_t lo, size_t hi)
{
	for (size_t page = lo; page < hi; page++) {
		check_page(seed, page, written_in[page]);
		step(1);
	}
}

static void do_random(size_t lo, size_t hi)
{
	size_t n = hi - lo;
	size_t stride = n ? pick_stride(n) : 1;

	for (size_t i = 0; i < n; i++) {
		size_t page = lo + i * stride % n;

		check_page(seed, page, written_in[page]);
		step(1);
	}
}

static void do_overwrite(size_t lo, size_t hi)
{
	size_t n = hi - lo;
	size_t stride = n ? pick_stride(n) : 1;

	for (size_t i = 0; i < n; i++) {
		size_t page = lo + i * stride % n;

		check_page(seed, page, written_in[page]);
		if (i & 1)
			write_page(page);
		step(1);
	}
}

static void do_drop(size_t lo, size_t hi)
{
	size_t run = 0;

	for (size_t first = lo; first < hi; first += RUN, run++) {
		size_t count = hi - first < RUN ? hi - first : RUN;
		unsigned char *start = base + first * PAGE;

		step(count);
		if (run % 3 == 2)
			continue;
		if (run % 3 == 0) {
			if (madvise(start, count * PAGE, MADV_DONTNEED))
				die("madvise");
		} else {
			if (munmap(start, count * PAGE))
				die("munmap");
			if (mmap(start, count * PAGE, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != start)
				die("mmap");
		}
		memset(written_in + first, 0, count);
		for (size_t page = first; page < first + count; page++) {
			if (page & 1)
				check_page(seed, page, 0);
			else
				write_page(page);
		}
	}
}

static void *thread_main(void *arg)
{
	struct range *range = arg;

	range->work(range->lo, range->hi);
	return NULL;
}

static void spread(void (*work)(size_t lo, size_t hi))
{
	struct range ranges[MAX_THREADS];
	pthread_t ids[MAX_THREADS];

	for (int i = 0; i < threads; i++) {
		ranges[i] = (struct range) {
			.lo = pages * (size_t)i / (size_t)threads,
			.hi = pages * ((size_t)i + 1) / (size_t)threads,
			.work = work,
		};
	}
	for (int i = 1; i < threads; i++) {
		if (pthread_create(&ids[i], NULL, thread_main, &ranges[i]))
			die("pthread_create");
	}
	thread_main(&ranges[0]);
	for (int i = 1; i < threads; i++)
		pthread_join(ids[i], NULL);
}

static void wait_for(const pid_t *ids, int count)
{
	int failed = 0;

	for (int i = 0; i < count; i++) {
		int status;

		if (waitpid(ids[i], &status, 0) != ids[i])
			die("waitpid");
		if (!WIFEXITED(status) || WEXITSTATUS(status)) {
			say("hog: child %d ended with status 0x%x\n", i, (unsigned int)status);
			failed = 1;
		}
	}
	if (failed)
		_exit(2);
}

static void child_work(int child)
{
	uint64_t own = seed + 1000003 * ((uint64_t)child + 1);

	for (size_t page = 0; page < pages; page++)
		check_page(seed, page, written_in[page]);
	for (size_t page = (size_t)child; page < pages; page += 4)
		make_page(base + page * PAGE, own, page, 1);
	for (size_t page = 0; page < pages; page++) {
		if (page >= (size_t)child && (page - (size_t)child) % 4 == 0)
			check_page(own, page, 1);
		else
			check_page(seed, page, written_in[page]);
	}
}

static void do_fork(void)
{
	pid_t ids[MAX_THREADS];

	for (int i = 0; i < children; i++) {
		ids[i] = fork();
		if (ids[i] < 0)
			die("fork");
		if (!ids[i]) {
			child_work(i);
			_exit(0);
		}
	}
	spread(do_random);
	wait_for(ids, children);
}

static void do_wait(void)
{
	FILE *file = fopen("/tmp/waiting", "w");

	if (!file)
		die("/tmp/waiting");
	fclose(file);
	while (unlink("/tmp/go"))
		usleep(50000);
}

static void phase(const char *name)
{
	uint64_t start = now_ms();

	phase_name = name;
	done = 0;
	if (current_round == 255) {
		say("hog: too many phases\n");
		_exit(3);
	}
	current_round++;
	if (!strcmp(name, "fill"))
		spread(do_fill);
	else if (!strcmp(name, "verify"))
		spread(do_verify);
	else if (!strcmp(name, "random"))
		spread(do_random);
	else if (!strcmp(name, "overwrite"))
		spread(do_overwrite);
	else if (!strcmp(name, "drop"))
		spread(do_drop);
	else if (!strcmp(name, "fork"))
		do_fork();
	else if (!strcmp(name, "wait"))
		do_wait();
	else if (!strcmp(name, "pageout")) {
		if (madvise(base, pages * PAGE, MADV_PAGEOUT))
			die("madvise");
	} else if (!strcmp(name, "corrupt"))
		base[pages / 2 * PAGE + 1234] ^= 4;
	else {
		say("hog: unknown phase %s\n", name);
		_exit(3);
	}
	say("phase %s process=%d ms=%llu\n", name, process_index,
	    (unsigned long long)(now_ms() - start));
}

static size_t parse_size(const char *text)
{
	char *end;
	unsigned long long value = strtoull(text, &end, 10);

	switch (*end) {
	case 'G':
		value <<= 10;
		/* fall through */
	case 'M':
		value <<= 10;
		/* fall through */
	case 'K':
		value <<= 10;
		end++;
	}
	if (end == text || *end || !value) {
		say("hog: not a size: %s\n", text);
		_exit(3);
	}
	return value;
}

static void parse_kinds(char *text)
{
	kind_count = 0;
	for (char *name = strtok(text, ","); name; name = strtok(NULL, ",")) {
		int known = 0;

		for (int i = 0; i < MAX_KINDS; i++) {
			if (!strcmp(name, kind_names[i]) && kind_count < MAX_KINDS) {
				kinds[kind_count++] = (enum kind)i;
				known = 1;
			}
		}
		if (!known) {
			say("hog: unknown page kind %s\n", name);
			_exit(3);
		}
	}
	if (!kind_count) {
		say("hog: no page kinds\n");
		_exit(3);
	}
}

static int parse_count(const char *text)
{
	int value = atoi(text);

	if (value < 1 || value > MAX_THREADS) {
		say("hog: not a count from 1 to %d: %s\n", MAX_THREADS, text);
		_exit(3);
	}
	return value;
}

int main(int argc, char **argv)
{
	char *phases = strdup("fill");
	size_t size = 0;
	int procs = 1;
	uint64_t start = now_ms();
	struct rusage self, kids;

	for (int i = 1; i < argc; i++) {
		char *value = strchr(argv[i], '=');

		if (!value) {
			say("hog: not key=value: %s\n", argv[i]);
			return 3;
		}
		*value++ = 0;
		if (!strcmp(argv[i], "size")) {
			size = parse_size(value);
		} else if (!strcmp(argv[i], "phases")) {
			phases = value;
		} else if (!strcmp(argv[i], "kinds")) {
			parse_kinds(value);
		} else if (!strcmp(argv[i], "threads")) {
			threads = parse_count(value);
		} else if (!strcmp(argv[i], "procs")) {
			procs = parse_count(value);
		} else if (!strcmp(argv[i], "children")) {
			children = parse_count(value);
		} else if (!strcmp(argv[i], "seed")) {
			seed = strtoull(value, NULL, 10);
		} else {
			say("hog: unknown key %s\n", argv[i]);
			return 3;
		}
	}
	if (!size) {
		say("hog: size=N[KMG] is missing\n");
		return 3;
	}
	pages = size / PAGE / (size_t)procs;

	if (procs > 1) {
		pid_t ids[MAX_THREADS];

		for (int i = 0; i < procs; i++) {
			ids[i] = fork();
			if (ids[i] < 0)
				die("fork");
			if (!ids[i]) {
				process_index = i + 1;
				seed += 77777 * ((uint64_t)i + 1);
				break;
			}
		}
		if (!process_index) {
			wait_for(ids, procs);
			getrusage(RUSAGE_CHILDREN, &kids);
			say("verify ok pages=%zu bytes=%zu processes=%d ms=%llu majflt=%ld minflt=%ld\n",
			    pages * (size_t)procs, pages * (size_t)procs * PAGE, procs,
			    (unsigned long long)(now_ms() - start), kids.ru_majflt, kids.ru_minflt);
			return 0;
		}
	}

	base = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	written_in = calloc(pages, 1);
	if (base == MAP_FAILED || !written_in)
		die("mmap");

	for (char *name = strtok(phases, ","); name; name = strtok(NULL, ","))
		phase(name);
	phase("verify");

	if (process_index) {
		say("process %d checked=%llu\n", process_index, (unsigned long long)checked);
		return 0;
	}
	getrusage(RUSAGE_SELF, &self);
	getrusage(RUSAGE_CHILDREN, &kids);
	say("verify ok pages=%zu bytes=%zu checked=%llu ms=%llu majflt=%ld minflt=%ld\n",
	    pages, pages * PAGE, (unsigned long long)checked,
	    (unsigned long long)(now_ms() - start), self.ru_majflt + kids.ru_majflt,
	    self.ru_minflt + kids.ru_minflt);
	return 0;
}
