// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * vectors: processes that are preempted and take signals keep their registers.
 *
 *   vectors [seconds=4] [procs=2]
 *
 * Each process fills all floating-point and vector registers with values of its
 * own and checks repeatedly whether they are unchanged: while it computes, in
 * system calls, and after a page fault. A timer interrupts it; the handler
 * overwrites every one of these registers and raises another signal, whose
 * handler does the same. Then it forks: the child must start with the registers
 * of its parent, and must not change those of its parent.
 *
 * The available registers are detected at run time: x87 and SSE always, AVX and
 * AVX-512 where the processor has them and the kernel has enabled them.
 *
 * Output: "vectors have x87 sse ...", "vectors process=P rounds=N signals=N" and
 * at the end "vectors ok procs=N", or "vectors FAILED process=P register=R
 * phase=W signals=N". Exit status 0 only for ok.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define MAX_PROCS 16
#define TICK_US 5000
#define VECTORS 32
#define MASKS 8
#define STACK 8

/* The state that the kernel saves, from XGETBV. */
#define XCR0_SSE 0x02
#define XCR0_AVX 0x04
#define XCR0_AVX512 0xe0

/* One set of registers. Those that the processor does not have stay zero. */
struct registers {
	unsigned char vector[VECTORS][64];
	uint64_t mask[MASKS];
	uint64_t x87[STACK];
	uint32_t mxcsr;
	uint16_t control;
	uint16_t unused;
	uint64_t unused_too;
} __attribute__((aligned(64)));

static int have_avx, have_avx512, have_wide_masks;
static int process_index;
static volatile sig_atomic_t signals;
static struct registers handler_values;

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
	say("vectors: %s: %s\n", what, strerror(errno));
	_exit(3);
}

static void find_registers(void)
{
	unsigned int a, b, c, d, low, high;

	if (__get_cpuid(1, &a, &b, &c, &d) && (c & bit_OSXSAVE)) {
		__asm__ volatile ("xgetbv" : "=a" (low), "=d" (high) : "c" (0));
		have_avx = (c & bit_AVX) && (low & XCR0_SSE) && (low & XCR0_AVX);
		if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
			have_avx512 = have_avx && (b & bit_AVX512F) &&
				      (low & XCR0_AVX512) == XCR0_AVX512;
			have_wide_masks = have_avx512 && (b & bit_AVX512BW);
		}
	}
	say("vectors have x87 sse%s%s\n", have_avx ? " avx" : "",
	    have_avx512 ? " avx512" : "");
}

static void make_values(struct registers *r, uint64_t seed)
{
	size_t width = have_avx512 ? 64 : have_avx ? 32 : 16;
	size_t count = have_avx512 ? 32 : 16;
	uint64_t x = seed * 0x9e3779b97f4a7c15ULL | 1;

	memset(r, 0, sizeof(*r));
	for (size_t i = 0; i < count; i++) {
		for (size_t at = 0; at < width; at++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			r->vector[i][at] = (unsigned char)(x >> 32);
		}
	}
	for (size_t i = 0; have_avx512 && i < MASKS; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		r->mask[i] = have_wide_masks ? x : x & 0xffff;
	}
	/* Integers, which the x87 loads and stores without a change */
	for (size_t i = 0; i < STACK; i++)
		r->x87[i] = seed * 1000 + i;
	/* Exceptions masked; rounding as the seed says, in both control words */
	r->mxcsr = 0x1f80 | (uint32_t)(seed & 3) << 13;
	r->control = (uint16_t)(0x37f | (seed & 3) << 10);
}

#define EACH_8(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7)
#define EACH_16(op) EACH_8(op) op(8) op(9) op(10) op(11) op(12) op(13) op(14) op(15)
#define EACH_32(op) EACH_16(op) op(16) op(17) op(18) op(19) op(20) op(21) op(22) op(23) \
	op(24) op(25) op(26) op(27) op(28) op(29) op(30) op(31)

#define LOAD_ZMM(n) "vmovdqu64 64*" #n "(%0), %%zmm" #n "\n"
#define LOAD_YMM(n) "vmovdqu 64*" #n "(%0), %%ymm" #n "\n"
#define LOAD_XMM(n) "movdqu 64*" #n "(%0), %%xmm" #n "\n"
#define SAVE_ZMM(n) "vmovdqu64 %%zmm" #n ", 64*" #n "(%0)\n"
#define SAVE_YMM(n) "vmovdqu %%ymm" #n ", 64*" #n "(%0)\n"
#define SAVE_XMM(n) "movdqu %%xmm" #n ", 64*" #n "(%0)\n"
#define LOAD_MASK(n) "kmovq 8*" #n "(%0), %%k" #n "\n"
#define SAVE_MASK(n) "kmovq %%k" #n ", 8*" #n "(%0)\n"
#define LOAD_SHORT_MASK(n) "kmovw 8*" #n "(%0), %%k" #n "\n"
#define SAVE_SHORT_MASK(n) "kmovw %%k" #n ", 8*" #n "(%0)\n"

/*
 * The compiler does not know the values that these leave in registers. Between
 * load() and save() there is code without floating point only, in functions
 * that are built for general registers (see below); the tests are in memory.
 */
#define GENERAL __attribute__((noinline, target("general-regs-only")))

static GENERAL void load(const struct registers *r)
{
	__asm__ volatile ("fninit\nfldcw %0" : : "m" (r->control));
	for (int i = STACK - 1; i >= 0; i--)
		__asm__ volatile ("fildll %0" : : "m" (r->x87[i]));
	__asm__ volatile ("ldmxcsr %0" : : "m" (r->mxcsr));
	if (have_avx512) {
		__asm__ volatile (EACH_32(LOAD_ZMM) : : "r" (r->vector) : "memory");
		if (have_wide_masks)
			__asm__ volatile (EACH_8(LOAD_MASK) : : "r" (r->mask) : "memory");
		else
			__asm__ volatile (EACH_8(LOAD_SHORT_MASK) : : "r" (r->mask) : "memory");
	} else if (have_avx) {
		__asm__ volatile (EACH_16(LOAD_YMM) : : "r" (r->vector) : "memory");
	} else {
		__asm__ volatile (EACH_16(LOAD_XMM) : : "r" (r->vector) : "memory");
	}
}

/* Also takes the values off the x87 stack. */
static GENERAL void save(struct registers *r)
{
	if (have_avx512) {
		__asm__ volatile (EACH_32(SAVE_ZMM) : : "r" (r->vector) : "memory");
		if (have_wide_masks)
			__asm__ volatile (EACH_8(SAVE_MASK) : : "r" (r->mask) : "memory");
		else
			__asm__ volatile (EACH_8(SAVE_SHORT_MASK) : : "r" (r->mask) : "memory");
	} else if (have_avx) {
		__asm__ volatile (EACH_16(SAVE_YMM) : : "r" (r->vector) : "memory");
	} else {
		__asm__ volatile (EACH_16(SAVE_XMM) : : "r" (r->vector) : "memory");
	}
	__asm__ volatile ("stmxcsr %0" : "=m" (r->mxcsr));
	__asm__ volatile ("fnstcw %0" : "=m" (r->control));
	for (int i = 0; i < STACK; i++)
		__asm__ volatile ("fistpll %0" : "=m" (r->x87[i]));
	/* The rest is compiled for the usual modes */
	__asm__ volatile ("fninit");
	if (have_avx)
		__asm__ volatile ("vzeroupper");
}

static GENERAL long call(long number, long a, long b)
{
	long result;

	__asm__ volatile ("syscall" : "=a" (result)
			  : "a" (number), "D" (a), "S" (b)
			  : "rcx", "r11", "memory");
	return result;
}

/* Work that leaves the registers alone, of one of several kinds. */
static GENERAL void pass_time(unsigned long round, unsigned char *area)
{
	switch (round % 4) {
	case 0:
		for (volatile int i = 0; i < 200000; i++)
			;
		break;
	case 1:
		for (int i = 0; i < 20; i++)
			call(SYS_getppid, 0, 0);
		break;
	case 2:
		for (int i = 0; i < 5; i++)
			call(SYS_sched_yield, 0, 0);
		break;
	case 3:
		/* Faults a page in: the host's handler runs in this process */
		*(volatile unsigned char *)area = (unsigned char)round;
		break;
	}
}

static void fail(const char *name, size_t number, const char *phase)
{
	say("vectors FAILED process=%d register=%s%zu phase=%s signals=%d\n",
	    process_index, name, number, phase, (int)signals);
	_exit(1);
}

static void compare(const struct registers *want, const struct registers *have, const char *phase)
{
	for (size_t i = 0; i < VECTORS; i++) {
		if (memcmp(want->vector[i], have->vector[i], 64))
			fail("vector", i, phase);
	}
	for (size_t i = 0; i < MASKS; i++) {
		if (want->mask[i] != have->mask[i])
			fail("mask", i, phase);
	}
	for (size_t i = 0; i < STACK; i++) {
		if (want->x87[i] != have->x87[i])
			fail("x87-", i, phase);
	}
	if (want->mxcsr != have->mxcsr)
		fail("mxcsr", 0, phase);
	if (want->control != have->control)
		fail("control", 0, phase);
}

/* Both handlers: leave something else in every register. */
static GENERAL void overwrite(int signal)
{
	signals++;
	load(&handler_values);
	if (signal == SIGALRM)
		call(SYS_kill, call(SYS_getpid, 0, 0), SIGUSR1);
}

static void on_signal(int number, void (*handler)(int))
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESTART };

	if (sigaction(number, &action, NULL))
		die("sigaction");
}

static void tick(long us)
{
	struct itimerval every = { { 0, us }, { 0, us } };

	if (setitimer(ITIMER_REAL, &every, NULL))
		die("setitimer");
}

/* A child begins with the registers of its parent, and has its own from then on. */
static void check_fork(const struct registers *mine)
{
	static struct registers seen;
	int status;
	long child;

	load(mine);
	child = call(SYS_fork, 0, 0);
	if (!child) {
		save(&seen);
		compare(mine, &seen, "child");
		load(&handler_values);
		for (int i = 0; i < 5; i++)
			call(SYS_sched_yield, 0, 0);
		call(SYS_exit_group, 0, 0);
	}
	for (int i = 0; i < 5; i++)
		call(SYS_sched_yield, 0, 0);
	save(&seen);
	if (child < 0) {
		errno = (int)-child;
		die("fork");
	}
	compare(mine, &seen, "parent");
	if (waitpid((pid_t)child, &status, 0) != child)
		die("waitpid");
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		_exit(1);
}

static void work(uint64_t seconds)
{
	static const char *const phases[4] = { "compute", "call", "yield", "fault" };
	static struct registers mine, seen;
	uint64_t end = now_ms() + seconds * 1000;
	unsigned long round = 0, faults = 64;
	unsigned char *area;

	make_values(&mine, (uint64_t)process_index + 1);
	make_values(&handler_values, (uint64_t)process_index + 101);
	area = mmap(NULL, faults * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (area == MAP_FAILED)
		die("mmap");
	on_signal(SIGALRM, overwrite);
	on_signal(SIGUSR1, overwrite);
	tick(TICK_US);
	do {
		unsigned long page = round / 4 % faults;

		if (!page && madvise(area, faults * PAGE, MADV_DONTNEED))
			die("madvise");
		load(&mine);
		pass_time(round, area + page * PAGE);
		save(&seen);
		compare(&mine, &seen, phases[round % 4]);
		round++;
	} while (now_ms() < end || !signals);
	tick(0);
	check_fork(&mine);
	say("vectors process=%d rounds=%lu signals=%d\n", process_index, round, (int)signals);
}

static unsigned long parse(const char *text, unsigned long most)
{
	char *end;
	unsigned long value = strtoul(text, &end, 10);

	if (end == text || *end || !value || value > most) {
		say("vectors: not a number from 1 to %lu: %s\n", most, text);
		_exit(3);
	}
	return value;
}

int main(int argc, char **argv)
{
	unsigned long seconds = 4, procs = 2;
	pid_t ids[MAX_PROCS];
	int failed = 0;

	for (int i = 1; i < argc; i++) {
		char *value = strchr(argv[i], '=');

		if (!value) {
			say("vectors: not key=value: %s\n", argv[i]);
			return 3;
		}
		*value++ = 0;
		if (!strcmp(argv[i], "seconds")) {
			seconds = parse(value, 3600);
		} else if (!strcmp(argv[i], "procs")) {
			procs = parse(value, MAX_PROCS);
		} else {
			say("vectors: unknown key %s\n", argv[i]);
			return 3;
		}
	}
	find_registers();
	for (unsigned long i = 0; i < procs; i++) {
		ids[i] = fork();
		if (ids[i] < 0)
			die("fork");
		if (!ids[i]) {
			process_index = (int)i;
			work(seconds);
			_exit(0);
		}
	}
	for (unsigned long i = 0; i < procs; i++) {
		int status;

		if (waitpid(ids[i], &status, 0) != ids[i])
			die("waitpid");
		if (!WIFEXITED(status) || WEXITSTATUS(status)) {
			say("vectors: process %lu ended with status 0x%x\n", i, (unsigned int)status);
			failed = 1;
		}
	}
	if (failed)
		return 1;
	say("vectors ok procs=%lu\n", procs);
	return 0;
}
