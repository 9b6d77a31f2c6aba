/*
 * Gives most of its memory back as soon as it has moved: half of it with madvise, a quarter with munmap. None of that
 * needs to cross the network any more, and all of it must be gone for us. usage: discards LOG MARKER SEED
 */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "workload.h"

#define NR_PAGES 16384 /* 64 MiB */

int main(int argc, char **argv)
{
	static uint64_t stamps[NR_PAGES];
	const size_t half = NR_PAGES / 2, quarter = NR_PAGES / 4;
	char *memory;

	work_begin(argc, argv);
	memory = MUST(mmap(NULL, NR_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (size_t page = 0; page < NR_PAGES; page++)
		stamp_page(memory + page * PAGE, stamps[page] = page + 1);
	while (work_step(MS)) {
		if (has_moved()) {
			MUST(madvise(memory, half * PAGE, MADV_DONTNEED));
			MUST(munmap(memory + half * PAGE, quarter * PAGE));
			for (size_t page = 0; page < half; page++)
				stamps[page] = 0;
			say("discarded");
		}
	}
	for (size_t page = 0; page < NR_PAGES; page++)
		if (page < half || page >= half + quarter)
			CHECK(check_page(memory + page * PAGE, stamps[page]) < 0, "page %zu is wrong at the end", page);
	work_done();
}
