/* Exits with status 7 when it is told to: in the middle of whatever is being done with it. Memory enough for that. */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <unistd.h>

#include "workload.h"

#define NR_PAGES 65536

int main(int argc, char **argv)
{
	uint64_t stamp = 0;
	char *memory;

	work_begin(argc, argv);
	memory = MUST(mmap(NULL, NR_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (size_t page = 0; page < NR_PAGES; page++)
		stamp_page(memory + page * PAGE, ++stamp);
	while (work_step(MS))
		for (size_t page = stamp % 64; page < NR_PAGES; page += 64)
			stamp_page(memory + page * PAGE, ++stamp);
	_exit(7);
}
