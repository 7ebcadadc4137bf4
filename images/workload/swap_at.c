// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * swap_at: uses a swap area, with a priority if one is given.
 *
 *   swap_at PATH [PRIORITY]
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/swap.h>

int main(int argc, char **argv)
{
	int flags = 0;

	if (argc < 2 || argc > 3) {
		fprintf(stderr, "usage: swap_at PATH [PRIORITY]\n");
		return 3;
	}
	if (argc == 3) {
		char *end;
		unsigned long priority = strtoul(argv[2], &end, 10);

		if (end == argv[2] || *end || priority > SWAP_FLAG_PRIO_MASK) {
			fprintf(stderr, "swap_at: not a priority from 0 to %d: %s\n",
				SWAP_FLAG_PRIO_MASK, argv[2]);
			return 3;
		}
		flags = SWAP_FLAG_PREFER | (int)priority << SWAP_FLAG_PRIO_SHIFT;
	}
	if (swapon(argv[1], flags)) {
		fprintf(stderr, "swap_at: %s: %s\n", argv[1], strerror(errno));
		return 1;
	}
	return 0;
}
