/*
 * An arena: a range of addresses in which pages are mapped, written, protected, discarded, moved and unmapped at random,
 * and a shadow that knows for each page what must be seen there. One thread per arena.
 */
#ifndef ARENA_H
#define ARENA_H

#include <sys/mman.h>

#include "workload.h"

/* A shadow entry: 0 is a page of zeros. */
#define UNMAPPED UINT64_MAX

/* Kinds of operations. */
enum { WRITE, READ, DISCARD, UNMAP, MAP, MOVE, GROW, PROTECT, FREE, NR_KINDS };

struct arena {
	const char *name;
	char *base;
	size_t nr_pages;
	uint64_t *stamps;
	unsigned char *prots;
	/* Given back with MADV_FREE and not written since: each word may be zero by now. */
	bool *freed;
	/* Operations happen, and checks look, below this page. What is behind it stays as it is. */
	size_t reach;
	uint64_t random;
	uint64_t next_stamp;
	/* Operations that were begun: a complaint says which one it was. */
	unsigned long operation;
	/* Operations per kind, to see that a run did something. */
	unsigned long done[NR_KINDS];
};

/* The shadow lies outside, in memory that is not lazy for long: it is written all the time. */
void arena_make(struct arena *arena, const char *name, void *base, size_t nr_pages, uint64_t which);

/* One random operation on at most `max_pages` pages, checked. */
void arena_act(struct arena *arena, size_t max_pages);

/* Compares every page within reach that can be read. */
void arena_check(struct arena *arena);

/* One page is written, if that is possible: nothing else happens to the arena. */
void arena_write(struct arena *arena, size_t page);

/*
 * Forks a child that acts on what it has inherited, checked, while the parent does the same with its own copy; every
 * third child runs a program instead. Returns when the child has ended well.
 */
void arena_fork(struct arena *arena, unsigned long which, int nr_acts, size_t max_pages);

#endif
