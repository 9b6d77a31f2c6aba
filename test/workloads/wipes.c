/*
 * Memory that a child is to find empty (madvise(2), MADV_WIPEONFORK), as generators of random numbers keep their state:
 * a child with its parent's content would make the same numbers. There are children as soon as it has moved; the parent
 * touches it at the beginning and at the end.
 */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "workload.h"

#define NR_PAGES 64

static char *memory;

static void check_child(size_t page)
{
	for (size_t i = 0; i < PAGE; i++)
		if (memory[page * PAGE + i] != 0)
			_exit(1);
	memory[page * PAGE] = 1;
	_exit(0);
}

int main(int argc, char **argv)
{
	bool moved = false;
	size_t page = 0;
	int status;

	work_begin(argc, argv);
	memory = MUST(mmap(NULL, NR_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	MUST(madvise(memory, NR_PAGES * PAGE, MADV_WIPEONFORK));
	for (size_t i = 0; i < NR_PAGES; i++)
		stamp_page(memory + i * PAGE, i + 1);
	while (work_step(MS)) {
		pid_t child;

		moved = moved || has_moved();
		if (!moved)
			continue;
		child = MUST(fork());
		if (child == 0)
			check_child(page);
		MUST(waitpid(child, &status, 0));
		CHECK(status == 0, "a child found page %zu of its parent", page);
		page = (page + 1) % NR_PAGES;
	}
	for (size_t i = 0; i < NR_PAGES; i++)
		CHECK(check_page(memory + i * PAGE, i + 1) < 0, "page %zu of the parent is wrong", i);
	work_done();
}
