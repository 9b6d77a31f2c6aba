/*
 * Eight threads do what they like with their memory, as fast as they can: also while most of it is still on another
 * machine. After every move the first thread forks a number of children; a child must see what its parent sees, and
 * the parent must not see what the child writes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arena.h"

#define NR_THREADS 8
#define NR_PAGES 4096
#define NR_CHILDREN 6

static struct arena arenas[NR_THREADS];
static atomic_bool stopping;
static atomic_ulong nr_forked;

/* Only changes its own copy. Exits with 0, or runs a program that does. */
static void be_child(struct arena *arena, int which)
{
	char *const no_arguments[] = { "true", NULL };

	if (which % 3 == 2) {
		execv("/bin/true", no_arguments);
		_exit(9);
	}
	arena_check(arena);
	for (int i = 0; i < 200; i++)
		arena_act(arena, 64);
	arena_check(arena);
	_exit(0);
}

static void fork_children(struct arena *arena)
{
	for (int i = 0; i < NR_CHILDREN; i++) {
		int status;
		pid_t child = MUST(fork());

		if (child == 0)
			be_child(arena, i);
		for (int n = 0; n < 200; n++)
			arena_act(arena, 64);
		MUST(waitpid(child, &status, 0));
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child %d ended with %x", i, status);
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
