/*
 * The scenario of the mailing list thread of 2016, "lazy-pages: add support to combine pre-copy and post-copy": an area
 * from 0x10000 to 0x20000, whose first ten pages are written once, before the first round, and whose last six are
 * rewritten all the time until the move. After the move every page is touched once; "touched N M" says how many faults
 * the kernel has counted for the first ten and for the last six.
 */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/resource.h>

#include "workload.h"

#define START ((char *)0x10000)
#define NR_PAGES 16
#define NR_UNCHANGED 10

static long faults(void)
{
	struct rusage usage;

	MUST(getrusage(RUSAGE_THREAD, &usage));
	return usage.ru_minflt + usage.ru_majflt;
}

static long touch(uint64_t *stamps, int first, int nr)
{
	long before = faults();

	for (int page = first; page < first + nr; page++)
		CHECK(check_page(START + page * PAGE, stamps[page]) < 0, "page %d is wrong", page);
	return faults() - before;
}

int main(int argc, char **argv)
{
	static uint64_t stamps[NR_PAGES];
	uint64_t stamp = 0;

	work_begin(argc, argv);
	CHECK(mmap(START, NR_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) ==
		      START,
	      "0x10000 to 0x20000 cannot be mapped: %m");
	for (int page = 0; page < NR_PAGES; page++)
		stamp_page(START + page * PAGE, stamps[page] = ++stamp);
	while (work_step(MS)) {
		if (has_moved()) {
			long first = touch(stamps, 0, NR_UNCHANGED);

			say("touched %ld %ld", first, touch(stamps, NR_UNCHANGED, NR_PAGES - NR_UNCHANGED));
		}
		for (int page = NR_UNCHANGED; page < NR_PAGES; page++)
			stamp_page(START + page * PAGE, stamps[page] = ++stamp);
	}
	for (int page = 0; page < NR_PAGES; page++)
		CHECK(check_page(START + page * PAGE, stamps[page]) < 0, "page %d is wrong at the end", page);
	work_done();
}
