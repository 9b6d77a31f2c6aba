/*
 * Begins anew with execve(2) at SIGUSR1, at the same addresses. The memory of the second program has other contents: pages
 * of both must not meet in one process.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <unistd.h>

#include "workload.h"

#define NR_PAGES 8192

static volatile sig_atomic_t asked;

static void ask(int signal)
{
	asked = 1;
}

int main(int argc, char **argv)
{
	uint64_t generation = argc > 4 ? 2 : 1;
	char *again[] = { argv[0], argv[1], argv[2], argv[3], "again", NULL };
	char *memory;

	if ((personality(0xffffffff) & ADDR_NO_RANDOMIZE) == 0) {
		MUST(personality(ADDR_NO_RANDOMIZE));
		execv("/proc/self/exe", argv);
	}
	work_begin(argc, argv);
	signal(SIGUSR1, ask);
	memory = MUST(mmap(NULL, NR_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (size_t page = 0; page < NR_PAGES; page++)
		stamp_page(memory + page * PAGE, generation << 32 | (page + 1));
	say("generation %lu", generation);
	while (work_step(MS)) {
		for (size_t page = 0; page < NR_PAGES; page += 16)
			CHECK(check_page(memory + page * PAGE, generation << 32 | (page + 1)) < 0, "page %zu is wrong", page);
		if (asked && generation == 1)
			execv("/proc/self/exe", again);
	}
	for (size_t page = 0; page < NR_PAGES; page++)
		CHECK(check_page(memory + page * PAGE, generation << 32 | (page + 1)) < 0, "page %zu is wrong", page);
	work_done();
}
