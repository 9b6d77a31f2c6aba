/* Much memory, of which little changes. usage: idle LOG MARKER SEED [MIB] */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>

#include "workload.h"

#define BUSY_PAGES 256

int main(int argc, char **argv)
{
	size_t nr_pages = (argc > 4 ? strtoul(argv[4], NULL, 10) : 64) << 8;
	uint64_t random;
	uint64_t *stamps;
	char *memory;

	work_begin(argc, argv);
	random = random_state(0);
	memory = MUST(mmap(NULL, nr_pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	stamps = MUST(mmap(NULL, nr_pages * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (size_t page = 0; page < nr_pages; page++)
		stamp_page(memory + page * PAGE, stamps[page] = page + 1);
	while (work_step(5 * MS)) {
		for (int i = 0; i < 10; i++) {
			size_t page = random_below(&random, BUSY_PAGES);

			stamp_page(memory + page * PAGE, ++stamps[page]);
			page = random_below(&random, nr_pages);
			CHECK(check_page(memory + page * PAGE, stamps[page]) < 0, "page %zu is wrong", page);
		}
	}
	for (size_t page = 0; page < nr_pages; page++)
		CHECK(check_page(memory + page * PAGE, stamps[page]) < 0, "page %zu is wrong at the end", page);
	work_done();
}
