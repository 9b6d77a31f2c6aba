/*
 * Locked memory that is enlarged and has to move for it, while other memory is still to come. mremap(2) fills the new part
 * before it tells a userfaultfd of the move, and until then no page can be installed: it must not wait for one itself.
 */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "workload.h"

#define FIRST_PAGES 8
#define MORE_PAGES 4
#define TIMES 16
#define LIBRARY_PAGES 512

static char *library, *memory;
static size_t nr_pages = FIRST_PAGES;

static char *map_pages(size_t nr)
{
	return MUST(mmap(NULL, nr * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

static void check(size_t times)
{
	for (size_t i = 0; i < nr_pages; i++)
		CHECK(check_page(memory + i * PAGE, i + 1) < 0, "page %zu is wrong after %zu times", i, times);
	for (size_t i = 0; i < LIBRARY_PAGES / TIMES; i++) {
		size_t page = times * (LIBRARY_PAGES / TIMES) + i;

		CHECK(check_page(library + page * PAGE, page + 1) < 0, "page %zu of the library is wrong", page);
	}
}

/* To a place that the kernel chooses, or that we do. */
static void enlarge(bool fixed)
{
	size_t bytes = nr_pages * PAGE, more = MORE_PAGES * PAGE;

	if (fixed) {
		char *room = map_pages(nr_pages + MORE_PAGES);

		memory = MUST(mremap(memory, bytes, bytes + more, MREMAP_MAYMOVE | MREMAP_FIXED, room));
	} else {
		/* It cannot grow where it is: something lies behind it, or does now. */
		mmap(memory + bytes, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
		memory = MUST(mremap(memory, bytes, bytes + more, MREMAP_MAYMOVE));
	}
	for (size_t i = nr_pages; i < nr_pages + MORE_PAGES; i++) {
		CHECK(check_page(memory + i * PAGE, 0) < 0, "new page %zu is not empty", i);
		stamp_page(memory + i * PAGE, i + 1);
	}
	nr_pages += MORE_PAGES;
}

int main(int argc, char **argv)
{
	bool moved = false;
	size_t times = 0;

	work_begin(argc, argv);
	library = map_pages(LIBRARY_PAGES);
	for (size_t i = 0; i < LIBRARY_PAGES; i++)
		stamp_page(library + i * PAGE, i + 1);
	memory = map_pages(FIRST_PAGES);
	for (size_t i = 0; i < FIRST_PAGES; i++)
		stamp_page(memory + i * PAGE, i + 1);
	while (work_step(MS)) {
		if (!moved && has_moved()) {
			moved = true;
			MUST(mlock(memory, FIRST_PAGES * PAGE));
		}
		if (!moved || times == TIMES)
			continue;
		enlarge(times % 2 == 0);
		check(times++);
		if (times == TIMES)
			say("enlarged for the last time");
	}
	CHECK(times == TIMES, "enlarged %zu times only", times);
	work_done();
}
