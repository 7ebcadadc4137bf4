// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * guard: takes the place of the first process, for a guest that is about to
 * lose its pages.
 *
 *   exec guard PROGRAM [ARGUMENT...]
 *
 * A shell has pages in swap as well, and is killed when one cannot be loaded:
 * then the results of the others are not reported. This one keeps its own pages
 * in memory. It runs the program, and writes how it ended as a shell would
 * ("guest work N"), how many warnings the kernel wrote ("guest splats N"), the
 * counters of the driver ("counter end tmem.NAME N") and "guest off"; then it
 * powers off.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

#define READ_ALL 3	/* SYSLOG_ACTION_READ_ALL */

static char kernel_log[1 << 18];

static void splats(void)
{
	static const char *const words[] = {
		"WARNING:", "BUG:", "Oops", "INFO: task", "stall",
	};
	int len = klogctl(READ_ALL, kernel_log, sizeof(kernel_log) - 1);
	int found = 0;

	kernel_log[len > 0 ? len : 0] = 0;
	for (char *line = strtok(kernel_log, "\n"); line; line = strtok(NULL, "\n")) {
		for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
			if (strstr(line, words[i])) {
				printf("splat %s\n", line);
				found++;
				break;
			}
		}
	}
	/* Not to be taken for a kernel without warnings */
	if (len <= 0)
		found = -1;
	printf("guest splats %d\n", found);
}

static void counters(void)
{
	FILE *file = fopen("/sys/kernel/debug/tmem/stats", "r");
	char line[128];

	while (file && fgets(line, sizeof(line), file))
		printf("counter end tmem.%s", line);
}

int main(int argc, char **argv)
{
	int status = 0;
	pid_t child;

	if (argc < 2 || mlockall(MCL_CURRENT | MCL_FUTURE)) {
		perror("guard");
		return 3;
	}
	child = fork();
	if (!child) {
		execv(argv[1], argv + 1);
		perror(argv[1]);
		_exit(127);
	}
	/* Children of the process that this one replaced do not count */
	while (waitpid(child, &status, 0) != child)
		;
	/* Warnings may come from work that the kernel has yet to do */
	usleep(500000);
	printf("guest work %d\n", WIFSIGNALED(status) ? 128 + WTERMSIG(status) :
							 WEXITSTATUS(status));
	splats();
	counters();
	printf("guest off\n");
	fflush(stdout);
	sync();
	reboot(RB_POWER_OFF);
	return 3;
}
