/*
 * Threads that change the memory map without a pause, so that there is hardly a moment at which none of their changes is
 * under way, while one reads pages that are still to come: it must get them.
 *
 * usage: movers LOG MARKER SEED THREADS
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "workload.h"

#define MAX_THREADS 16
#define NOMAD_PAGES 8
#define LIBRARY_PAGES 8192
#define PAGES_PER_STEP 32

static unsigned long nr_threads;
static atomic_bool moved, stopping;
static atomic_ulong nr_moves;

static void *map_pages(size_t nr)
{
	return MUST(mmap(NULL, nr * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

static void *move(void *argument)
{
	uint64_t stamp = (uint64_t)argument + 1;
	char *at = map_pages(NOMAD_PAGES), *other = map_pages(NOMAD_PAGES);

	for (size_t page = 0; page < NOMAD_PAGES; page++)
		stamp_page(at + page * PAGE, stamp + page);
	while (!moved && !stopping)
		pause_ns(MS);
	while (!stopping) {
		char *old = at;

		at = MUST(mremap(old, NOMAD_PAGES * PAGE, NOMAD_PAGES * PAGE,
				 MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, other));
		other = old;
		nr_moves++;
	}
	for (size_t page = 0; page < NOMAD_PAGES; page++)
		CHECK(check_page(at + page * PAGE, stamp + page) < 0, "page %zu of thread %lu is wrong", page, stamp - 1);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[MAX_THREADS];
	size_t next = 0;
	char *library;

	work_begin(argc, argv);
	CHECK(argc == 5, "usage: movers LOG MARKER SEED THREADS");
	nr_threads = strtoul(argv[4], NULL, 10);
	CHECK(nr_threads <= MAX_THREADS, "too many threads");
	library = map_pages(LIBRARY_PAGES);
	for (size_t page = 0; page < LIBRARY_PAGES; page++)
		stamp_page(library + page * PAGE, page + 1);
	for (size_t i = 0; i < nr_threads; i++)
		CHECK(pthread_create(&threads[i], NULL, move, (void *)(i * NOMAD_PAGES)) == 0, "no thread");
	while (work_step(MS)) {
		if (!moved && has_moved())
			moved = true;
		if (!moved)
			continue;
		for (int i = 0; i < PAGES_PER_STEP && next < LIBRARY_PAGES; i++, next++)
			CHECK(check_page(library + next * PAGE, next + 1) < 0, "page %zu of the library is wrong", next);
		if (next == LIBRARY_PAGES) {
			say("all was read after %lu moves", (unsigned long)nr_moves);
			next++;
		}
	}
	stopping = true;
	for (size_t i = 0; i < nr_threads; i++)
		pthread_join(threads[i], NULL);
	work_done();
}
