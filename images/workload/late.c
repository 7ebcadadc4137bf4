// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * late: reads from a disk which answers late, and waits for no answer.
 *
 *   late DEVICE SAME PAGES MS
 *
 * Asks for the first PAGES pages of DEVICE, over and over, one each MS
 * milliseconds. With a DEVICE that holds every request back for some time
 * (dm-delay), the kernel reads then although this process is frozen. Makes a
 * file /tmp/waiting when the first page has come; ends when there is a file
 * /tmp/go, and every page that was asked for has come and has the bytes that
 * SAME has, the same disk without the delay.
 *
 * Output: "late ok pages=N" or "late FAILED page=N: REASON". Exit status 0 only
 * for ok.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096UL
/* Requests at a time; more than come due in the time of the delay */
#define REQUESTS 1024UL

static unsigned char buffers[REQUESTS][PAGE] __attribute__((aligned(4096)));
static unsigned char expected[PAGE] __attribute__((aligned(4096)));
static struct iocb requests[REQUESTS];
static uint64_t idle[REQUESTS], idle_count;
static aio_context_t context;
static int late, same;
static uint64_t came;

static void fail(uint64_t page, const char *reason)
{
	printf("late FAILED page=%llu: %s\n", (unsigned long long)page, reason);
	exit(1);
}

static void ask(uint64_t page)
{
	uint64_t slot = idle[--idle_count];
	struct iocb *request = &requests[slot];

	memset(request, 0, sizeof(*request));
	request->aio_data = slot;
	request->aio_lio_opcode = IOCB_CMD_PREAD;
	request->aio_fildes = late;
	request->aio_buf = (uintptr_t)buffers[slot];
	request->aio_nbytes = PAGE;
	request->aio_offset = page * PAGE;
	memset(buffers[slot], 0xee, PAGE);
	if (syscall(SYS_io_submit, context, 1, &request) != 1)
		fail(page, strerror(errno));
}

/* Takes completed reads; waits for so many. */
static void take(long wanted)
{
	static struct io_event events[REQUESTS];
	struct timespec none = { 0, 0 };
	long got, i;

	got = syscall(SYS_io_getevents, context, wanted, REQUESTS, events,
		      wanted ? NULL : &none);
	if (got < 0 && errno != EINTR)
		fail(0, strerror(errno));
	for (i = 0; i < got; i++) {
		uint64_t slot = events[i].data;
		uint64_t page = requests[slot].aio_offset / PAGE;

		if (events[i].res < 0)
			fail(page, strerror(-events[i].res));
		if (events[i].res != (long)PAGE ||
		    pread(same, expected, PAGE, page * PAGE) != (ssize_t)PAGE ||
		    memcmp(buffers[slot], expected, PAGE))
			fail(page, "other bytes");
		idle[idle_count++] = slot;
		if (!came++)
			close(open("/tmp/waiting", O_CREAT | O_WRONLY, 0600));
	}
}

int main(int argc, char **argv)
{
	uint64_t pages, ms, next = 0;

	if (argc != 5) {
		fprintf(stderr, "usage: late DEVICE SAME PAGES MS\n");
		return 2;
	}
	pages = strtoull(argv[3], NULL, 10);
	ms = strtoull(argv[4], NULL, 10);
	late = open(argv[1], O_RDONLY | O_DIRECT);
	same = open(argv[2], O_RDONLY | O_DIRECT);
	if (!pages || late < 0 || same < 0 ||
	    syscall(SYS_io_setup, REQUESTS, &context))
		fail(0, strerror(errno));
	for (idle_count = 0; idle_count < REQUESTS; idle_count++)
		idle[idle_count] = idle_count;
	while (access("/tmp/go", F_OK)) {
		take(idle_count == 0);
		ask(next++ % pages);
		usleep(ms * 1000);
	}
	while (idle_count < REQUESTS)
		take(1);
	printf("late ok pages=%llu\n", (unsigned long long)came);
	return 0;
}
