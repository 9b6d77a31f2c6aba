/*
 * Eight threads do what they like with their memory, as fast as they can: also while most of it is still on another
 * machine. After every move the first thread forks a number of children; a child must see what its parent sees, and
 * the parent must not see what the child writes.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>

#include "arena.h"

#define NR_THREADS 8
#define NR_PAGES 4096
#define NR_CHILDREN 6

static struct arena arenas[NR_THREADS];
static atomic_bool stopping;
static atomic_ulong nr_forked;

static void fork_children(struct arena *arena)
{
	for (int i = 0; i < NR_CHILDREN; i++) {
		arena_fork(arena, i, 200, 64);
		arena_check(arena);
		nr_forked++;
	}
}

static void *storm(void *argument)
{
	struct arena *arena = argument;
	unsigned long n = 0;

	while (!stopping) {
		arena_act(arena, 200);
		if (arena == arenas && n++ % 16 == 0 && has_moved())
			fork_children(arena);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	static const char names[NR_THREADS][9] = { "arena 0", "arena 1", "arena 2", "arena 3",
						   "arena 4", "arena 5", "arena 6", "arena 7" };
	pthread_t threads[NR_THREADS];

	work_begin(argc, argv);
	for (size_t i = 0; i < NR_THREADS; i++)
		arena_make(&arenas[i], names[i], (void *)(0x300000000000 + i * 0x10000000), NR_PAGES, i + 1);
	for (size_t i = 0; i < NR_THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, storm, &arenas[i]) == 0, "no thread");
	while (work_step(5 * MS))
		;
	stopping = true;
	for (size_t i = 0; i < NR_THREADS; i++) {
		pthread_join(threads[i], NULL);
		arena_check(&arenas[i]);
	}
	say("%lu children", (unsigned long)nr_forked);
	work_done();
}
