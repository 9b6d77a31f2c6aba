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

struct arena {
	const char *name;
	char *base;
	size_t nr_pages;
	uint64_t *stamps;
	unsigned char *prots;
	uint64_t random;
	uint64_t next_stamp;
	/* Operations per kind, to see that a run did something. */
	unsigned long done[8];
};

/* The shadow lies outside, in memory that is not lazy for long: it is written all the time. */
void arena_make(struct arena *arena, const char *name, void *base, size_t nr_pages, uint64_t which);

/* One random operation on at most `max_pages` pages, checked. */
void arena_act(struct arena *arena, size_t max_pages);

/* Compares every page that can be read; `changes` false: in a child that must not change protections either. */
void arena_check(struct arena *arena);

#endif
