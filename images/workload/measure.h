/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * measure: the clock, and the end of what a driver does later.
 */
#ifndef MEASURE_H
#define MEASURE_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DRIVER_STATS "/sys/kernel/debug/tmem/stats"
/* Nobody waits longer for the driver */
#define DRAIN_NS 50000000ULL

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

/*
 * Pages that the driver has copied and not yet sent: what its statistics say of
 * its present state (behind "device") in lines whose name has "staged" in it. A
 * driver without such a line sends each page at once.
 */
static uint64_t staged(void)
{
	FILE *file = fopen(DRIVER_STATS, "r");
	unsigned long long value, sum = 0;
	char name[64];
	int state = 0;

	if (!file)
		return 0;
	while (fscanf(file, "%63s %llu", name, &value) == 2) {
		state |= !strcmp(name, "device");
		if (state && strstr(name, "staged"))
			sum += value;
	}
	fclose(file);
	return sum;
}

/* Returns when nothing is staged, or after DRAIN_NS. */
static void drain(void)
{
	uint64_t start = now_ns();

	while (staged() && now_ns() - start < DRAIN_NS)
		usleep(100);
}

#endif
