/*
 * The lazy phase under stress. From the moment it has moved, eight threads read, write, give back, map, move, grow and
 * protect memory at random, fork children that check what they have inherited, and go deeper into their stacks, all
 * while their pages are still on the way. Each thread knows what each of its pages must contain at any moment.
 *
 * usage: stress LOG MARKER SEED SECONDS PAGES [dirty] [roaming]
 *
 * An operation of a thread is a function of the seed and its number alone. Operation n takes place in the first
 * n / (SECONDS * OPERATIONS_PER_S) of the PAGES of each thread, and not before its time, so that memory that was not
 * touched yet lasts for SECONDS. With 0 SECONDS all of it is within reach at once, and no thread waits.
 *
 * dirty     pages are also written before the move, so that rounds have something to do
 * roaming   nomads move to wherever the kernel puts them, often where another thread has just made room, instead of
 *           between two places of their own
 *
 * Of each thread:  an arena (arena.h), at addresses of its own choice
 *                  nomads, ranges that move all the time
 * Of all threads:  a library, which is only read: several threads fault on the same page
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "arena.h"

#define NR_THREADS 8
#define OPERATIONS_PER_S 100
/* In one operation of an arena. */
#define MAX_PAGES 32
#define FORK_EVERY 64
/* What parent and child do before they meet again. */
#define NR_ACTS 20
#define STACK_EVERY 8
#define MAX_DEPTH 48
#define NOMAD_PAGES 8
/* Of an operation. */
#define NR_WANDERED 4
#define NR_READ 4
/* With "dirty": for each thread. */
#define DIRTY_PAUSE MS

struct nomad {
	char *at;
	/* Where it goes next, unless it roams; mapped and empty. */
	char *other;
	uint64_t stamps[NOMAD_PAGES];
};

struct thread {
	pthread_t id;
	struct arena arena;
	struct nomad *nomads;
	uint64_t random;
	unsigned long operation, nr_forked;
};

static struct thread threads[NR_THREADS];
static size_t nr_pages, nr_nomads;
static unsigned long nr_paced;
static bool dirty, roaming;
static const char *library;
static uint64_t moved_at;
static atomic_bool moved, stopping;

static void *map_pages(size_t nr)
{
	return MUST(mmap(NULL, nr * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

static void expect(const struct thread *thread, const char *what, size_t page, const void *at, uint64_t stamp)
{
	int word = check_page(at, stamp);

	CHECK(word < 0, "seed %lu, thread %zu, operation %lu, %s, page %zu (%p), word %d: expected %lx, found %lx", work_seed,
	      thread - threads, thread->operation, what, page, at, word, stamp_word(stamp, word),
	      ((uint64_t *)at)[word]);
}

/* How much of `nr` things is within reach. */
static size_t reach(const struct thread *thread, size_t nr)
{
	size_t reached = nr_paced == 0 ? nr : nr * (thread->operation + 1) / nr_paced;

	return reached >= nr ? nr : reached + 1;
}

static void check_library(struct thread *thread, size_t page)
{
	expect(thread, "library", page, library + page * PAGE, page + 1);
}

static void check_nomad(struct thread *thread, size_t which)
{
	struct nomad *nomad = &thread->nomads[which];

	for (size_t page = 0; page < NOMAD_PAGES; page++)
		expect(thread, "nomad", which * NOMAD_PAGES + page, nomad->at + page * PAGE, nomad->stamps[page]);
}

static void write_nomad(struct nomad *nomad, size_t page, uint64_t stamp)
{
	stamp_page(nomad->at + page * PAGE, nomad->stamps[page] = stamp);
}

/* Leaves the old place mapped and empty, and then to others. */
static void leave_behind(struct thread *thread, size_t which)
{
	struct nomad *nomad = &thread->nomads[which];
	int flags = MREMAP_MAYMOVE | MREMAP_DONTUNMAP | (roaming ? 0 : MREMAP_FIXED);
	char *old = nomad->at;

	/* Not mremap(3): some hand on no address with these flags, and the kernel takes what is there for one. */
	nomad->at = (char *)MUST(syscall(SYS_mremap, old, NOMAD_PAGES * PAGE, NOMAD_PAGES * PAGE, flags, nomad->other));
	expect(thread, "left by a nomad", which * NOMAD_PAGES, old, 0);
	if (roaming)
		MUST(munmap(old, NOMAD_PAGES * PAGE));
	else
		nomad->other = old;
}

/* Leaves the old place at once, and what has grown then. */
static void grow_and_shrink(struct thread *thread, size_t which)
{
	struct nomad *nomad = &thread->nomads[which];

	if (!roaming)
		return;
	nomad->at = MUST(mremap(nomad->at, NOMAD_PAGES * PAGE, (NOMAD_PAGES + 1) * PAGE, MREMAP_MAYMOVE));
	expect(thread, "grown behind a nomad", which * NOMAD_PAGES, nomad->at + NOMAD_PAGES * PAGE, 0);
	MUST(munmap(nomad->at + NOMAD_PAGES * PAGE, PAGE));
}

static void begin_anew(struct nomad *nomad)
{
	void *old = nomad->at;

	if (roaming) {
		nomad->at = map_pages(NOMAD_PAGES);
		MUST(munmap(old, NOMAD_PAGES * PAGE));
	} else
		MUST(mmap(old, NOMAD_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	for (size_t i = 0; i < NOMAD_PAGES; i++)
		nomad->stamps[i] = 0;
}

static void wander(struct thread *thread, size_t which)
{
	struct nomad *nomad = &thread->nomads[which];
	size_t page = random_below(&thread->random, NOMAD_PAGES);

	switch (random_below(&thread->random, 4)) {
	case 0: leave_behind(thread, which); break;
	case 1: grow_and_shrink(thread, which); break;
	case 2: begin_anew(nomad); break;
	case 3: write_nomad(nomad, page, next_random(&thread->random)); break;
	}
	expect(thread, "nomad", which * NOMAD_PAGES + page, nomad->at + page * PAGE, nomad->stamps[page]);
}

static void operate(struct thread *thread)
{
	uint64_t *random = &thread->random;
	struct arena *arena = &thread->arena;

	arena->reach = reach(thread, nr_pages - MAX_PAGES) + MAX_PAGES;
	if (arena->reach > nr_pages)
		arena->reach = nr_pages;
	arena_act(arena, MAX_PAGES);
	for (int i = 0; i < NR_WANDERED; i++)
		wander(thread, random_below(random, reach(thread, nr_nomads)));
	for (int i = 0; i < NR_READ; i++)
		check_library(thread, random_below(random, reach(thread, nr_pages)));
	if (random_below(random, STACK_EVERY) == 0)
		use_stack(random_below(random, MAX_DEPTH), thread->operation);
	if (random_below(random, FORK_EVERY) == 0)
		arena_fork(arena, thread->nr_forked++, NR_ACTS, MAX_PAGES);
}

static void pause_until(uint64_t at)
{
	uint64_t now = now_ns(CLOCK_MONOTONIC);

	if (now < at)
		pause_ns(at - now);
}

static void *run(void *argument)
{
	struct thread *thread = argument;
	uint64_t random = random_state(3 * NR_THREADS + (thread - threads));

	while (!moved && !stopping) {
		if (dirty)
			arena_write(&thread->arena, random_below(&random, nr_pages));
		pause_ns(DIRTY_PAUSE);
	}
	for (; !stopping; thread->operation++) {
		if (nr_paced > 0)
			pause_until(moved_at + thread->operation * (SECOND / OPERATIONS_PER_S));
		operate(thread);
	}
	return NULL;
}

static void make_thread(struct thread *thread, const char *name)
{
	size_t which = thread - threads;

	arena_make(&thread->arena, name, (void *)(0x300000000000 + which * 0x10000000), nr_pages, which + 1);
	thread->random = random_state(2 * NR_THREADS + which);
	thread->nomads = map_pages((nr_nomads * sizeof(struct nomad) + PAGE - 1) / PAGE);
	for (size_t i = 0; i < nr_nomads; i++) {
		thread->nomads[i].at = map_pages(NOMAD_PAGES);
		thread->nomads[i].other = roaming ? NULL : map_pages(NOMAD_PAGES);
		for (size_t page = 0; page < NOMAD_PAGES; page++)
			write_nomad(&thread->nomads[i], page, next_random(&thread->random));
	}
}

/* The main thread has the stack that the kernel lets grow. */
static void wait_for_end(void)
{
	uint64_t random = random_state(4 * NR_THREADS);

	while (work_step(10 * MS)) {
		if (has_moved()) {
			moved_at = now_ns(CLOCK_MONOTONIC);
			moved = true;
		}
		if (moved)
			use_stack(random_below(&random, 4 * MAX_DEPTH), work_seed);
	}
}

static void check_everything(struct thread *thread)
{
	thread->arena.reach = nr_pages;
	arena_check(&thread->arena);
	for (size_t i = 0; i < nr_nomads; i++)
		check_nomad(thread, i);
	for (size_t page = 0; page < nr_pages; page++)
		check_library(thread, page);
}

int main(int argc, char **argv)
{
	static const char names[NR_THREADS][9] = { "thread 0", "thread 1", "thread 2", "thread 3",
						   "thread 4", "thread 5", "thread 6", "thread 7" };
	unsigned long nr_operations = 0, nr_forked = 0;
	char *shared;

	work_begin(argc, argv);
	CHECK(argc >= 6, "usage: stress LOG MARKER SEED SECONDS PAGES [dirty] [roaming]");
	nr_paced = strtoul(argv[4], NULL, 10) * OPERATIONS_PER_S;
	nr_pages = strtoul(argv[5], NULL, 10);
	nr_nomads = nr_pages / 4 / NOMAD_PAGES;
	for (int i = 6; i < argc; i++) {
		dirty |= strcmp(argv[i], "dirty") == 0;
		roaming |= strcmp(argv[i], "roaming") == 0;
	}
	CHECK(nr_pages > 2 * MAX_PAGES, "too little to do");
	shared = map_pages(nr_pages);
	for (size_t page = 0; page < nr_pages; page++)
		stamp_page(shared + page * PAGE, page + 1);
	MUST(mprotect(shared, nr_pages * PAGE, PROT_READ));
	library = shared;
	for (size_t i = 0; i < NR_THREADS; i++)
		make_thread(&threads[i], names[i]);
	for (size_t i = 0; i < NR_THREADS; i++)
		CHECK(pthread_create(&threads[i].id, NULL, run, &threads[i]) == 0, "no thread");
	wait_for_end();
	stopping = true;
	for (size_t i = 0; i < NR_THREADS; i++) {
		pthread_join(threads[i].id, NULL);
		check_everything(&threads[i]);
		nr_operations += threads[i].operation;
		nr_forked += threads[i].nr_forked;
	}
	say("%lu operations, %lu children", nr_operations, nr_forked);
	work_done();
}
