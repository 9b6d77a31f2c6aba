#define _GNU_SOURCE
#include "arena.h"

#include <errno.h>

#define RW (PROT_READ | PROT_WRITE)

static char *address(struct arena *arena, size_t page)
{
	return arena->base + page * PAGE;
}

static void check_one(struct arena *arena, size_t page, const char *when)
{
	int word;

	if (arena->stamps[page] == UNMAPPED || !(arena->prots[page] & PROT_READ))
		return;
	word = check_page(address(arena, page), arena->stamps[page]);
	CHECK(word < 0, "%s, page %zu (%p), word %d is %lx, stamp must be %lx (%s)", arena->name, page,
	      (void *)address(arena, page), word, ((uint64_t *)address(arena, page))[word], arena->stamps[page], when);
}

static void write_one(struct arena *arena, size_t page)
{
	uint64_t stamp = ++arena->next_stamp;

	if (arena->stamps[page] == UNMAPPED || arena->prots[page] != RW)
		return;
	/* Now and then zeros are written: a page that is there and reads like one that is not. */
	if (random_below(&arena->random, 16) == 0)
		stamp = 0;
	stamp_page(address(arena, page), stamp);
	arena->stamps[page] = stamp;
}

static void map_pages(struct arena *arena, size_t first, size_t nr, int extra)
{
	void *wanted = address(arena, first);

	CHECK(mmap(wanted, nr * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | extra, -1, 0) == wanted,
	      "%s: mmap of %zu pages at %p: %m", arena->name, nr, wanted);
	for (size_t page = first; page < first + nr; page++) {
		arena->stamps[page] = 0;
		arena->prots[page] = RW;
	}
}

static bool all_mapped(struct arena *arena, size_t first, size_t nr)
{
	for (size_t page = first; page < first + nr; page++)
		if (arena->stamps[page] == UNMAPPED)
			return false;
	return true;
}

static bool is_mapped(struct arena *arena, size_t page)
{
	unsigned char vector;

	return mincore(address(arena, page), PAGE, &vector) == 0;
}

/*
 * mremap over several areas is refused by some kernels, and by others in the middle, where areas differ in what tracks
 * them (that is documented). What was moved must then be found out page by page.
 */
static void move_pages(struct arena *arena, size_t from, size_t to, size_t nr)
{
	void *target = address(arena, to);
	bool moved;

	if (from < to + nr && to < from + nr)
		return;
	if (!all_mapped(arena, from, nr))
		return;
	for (size_t page = from; page < from + nr; page++)
		if (arena->prots[page] != arena->prots[from])
			return;
	/* MREMAP_FIXED unmaps what is there, also when it fails later. */
	MUST(munmap(target, nr * PAGE));
	for (size_t page = to; page < to + nr; page++)
		arena->stamps[page] = UNMAPPED;
	moved = mremap(address(arena, from), nr * PAGE, nr * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target) == target;
	CHECK(moved || errno == EFAULT, "%s: mremap of %zu pages: %m", arena->name, nr);
	for (size_t i = 0; i < nr; i++) {
		if (!moved && (is_mapped(arena, from + i) || !is_mapped(arena, to + i)))
			continue;
		arena->stamps[to + i] = arena->stamps[from + i];
		arena->prots[to + i] = arena->prots[from + i];
		arena->stamps[from + i] = UNMAPPED;
	}
	for (size_t page = to; page < to + nr; page++)
		check_one(arena, page, "moved");
}

/* Grows in place, where there is room behind. */
static void grow_pages(struct arena *arena, size_t first, size_t nr)
{
	size_t before = 1 + nr / 2;

	if (nr < 2 || !all_mapped(arena, first, before))
		return;
	for (size_t page = first; page < first + nr; page++) {
		if (page < first + before && arena->prots[page] != arena->prots[first])
			return;
		if (page >= first + before && arena->stamps[page] != UNMAPPED)
			return;
	}
	if (mremap(address(arena, first), before * PAGE, nr * PAGE, 0) == MAP_FAILED) {
		/* ENOMEM: the area goes on beyond `before`, so there is no room behind it. */
		CHECK(errno == EFAULT || errno == ENOMEM || errno == EINVAL, "%s: mremap to grow: %m", arena->name);
		return;
	}
	for (size_t page = first + before; page < first + nr; page++) {
		arena->stamps[page] = 0;
		arena->prots[page] = arena->prots[first];
		check_one(arena, page, "grown");
	}
}

static void protect_pages(struct arena *arena, size_t first, size_t nr)
{
	static const int choices[] = { PROT_NONE, PROT_READ, RW, RW };
	int prot = choices[random_below(&arena->random, 4)];

	if (!all_mapped(arena, first, nr))
		return;
	MUST(mprotect(address(arena, first), nr * PAGE, prot));
	for (size_t page = first; page < first + nr; page++)
		arena->prots[page] = prot;
}

void arena_act(struct arena *arena, size_t max_pages)
{
	uint64_t *random = &arena->random;
	size_t nr = 1 + random_below(random, max_pages);
	size_t first = random_below(random, arena->nr_pages - nr + 1);
	unsigned int what = random_below(random, 32);

	if (what < 12) {
		for (size_t page = first; page < first + nr; page++) {
			check_one(arena, page, "before a write");
			write_one(arena, page);
		}
		arena->done[0]++;
	} else if (what < 20) {
		for (size_t page = first; page < first + nr; page++)
			check_one(arena, page, "read");
		arena->done[1]++;
	} else if (what < 23) {
		if (!all_mapped(arena, first, nr))
			return;
		MUST(madvise(address(arena, first), nr * PAGE, MADV_DONTNEED));
		for (size_t page = first; page < first + nr; page++)
			arena->stamps[page] = 0;
		for (size_t page = first; page < first + nr; page += 3)
			check_one(arena, page, "discarded");
		arena->done[2]++;
	} else if (what < 25) {
		MUST(munmap(address(arena, first), nr * PAGE));
		for (size_t page = first; page < first + nr; page++)
			arena->stamps[page] = UNMAPPED;
		arena->done[3]++;
	} else if (what < 28) {
		map_pages(arena, first, nr, what == 27 ? MAP_NORESERVE : 0);
		arena->done[4]++;
	} else if (what < 30) {
		move_pages(arena, first, random_below(random, arena->nr_pages - nr + 1), nr);
		arena->done[5]++;
	} else if (what < 31) {
		grow_pages(arena, first, nr);
		arena->done[6]++;
	} else {
		protect_pages(arena, first, nr);
		arena->done[7]++;
	}
}

void arena_check(struct arena *arena)
{
	for (size_t page = 0; page < arena->nr_pages; page++)
		check_one(arena, page, "checked");
}

void arena_make(struct arena *arena, const char *name, void *base, size_t nr_pages, uint64_t which)
{
	size_t shadow = nr_pages * (sizeof *arena->stamps + 1);
	char *memory = mmap(NULL, shadow, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(memory != MAP_FAILED, "no memory for the shadow of %s: %m", name);
	arena->name = name;
	arena->base = base;
	arena->nr_pages = nr_pages;
	arena->stamps = (uint64_t *)memory;
	arena->prots = (unsigned char *)memory + nr_pages * sizeof *arena->stamps;
	arena->random = random_state(which);
	arena->next_stamp = which << 32;
	/* Nothing may come to lie in the middle: first a reservation, which is then replaced page by page. */
	CHECK(mmap(base, nr_pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == base,
	      "%s cannot be at %p: %m", name, base);
	map_pages(arena, 0, nr_pages, 0);
	for (size_t page = 0; page < nr_pages; page++)
		if (random_below(&arena->random, 8) != 0)
			write_one(arena, page);
}
