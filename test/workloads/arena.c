#define _GNU_SOURCE
#include "arena.h"

#include <errno.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define RW (PROT_READ | PROT_WRITE)

/* How many times the length of an operation the edge of what is within reach is wide. */
#define EDGE 4

static char *address(struct arena *arena, size_t page)
{
	return arena->base + page * PAGE;
}

/* MADV_FREE: the kernel takes the page as a whole, but maybe while we look. */
static int check_freed(const void *page, uint64_t stamp)
{
	const volatile uint64_t *words = page;

	for (size_t i = 0; i < PAGE / 8; i++) {
		uint64_t word = words[i];

		if (word != 0 && word != stamp_word(stamp, i))
			return (int)i;
	}
	return -1;
}

static void check_one(struct arena *arena, size_t page, const char *when)
{
	uint64_t stamp = arena->stamps[page];
	void *at = address(arena, page);
	int word;

	if (stamp == UNMAPPED || !(arena->prots[page] & PROT_READ))
		return;
	word = arena->freed[page] ? check_freed(at, stamp) : check_page(at, stamp);
	CHECK(word < 0, "seed %lu, %s, operation %lu, page %zu (%p), word %d: expected %lx, found %lx (%s%s)", work_seed,
	      arena->name, arena->operation, page, at, word, stamp_word(stamp, word), ((uint64_t *)at)[word], when,
	      arena->freed[page] ? ", freed" : "");
}

void arena_write(struct arena *arena, size_t page)
{
	uint64_t stamp = ++arena->next_stamp;

	if (arena->stamps[page] == UNMAPPED || arena->prots[page] != RW)
		return;
	/* Now and then zeros are written: a page that is there and reads like one that is not. */
	if (random_below(&arena->random, 16) == 0)
		stamp = 0;
	stamp_page(address(arena, page), stamp);
	arena->stamps[page] = stamp;
	arena->freed[page] = false;
}

/* What is in the shadow of a range from now on. */
static void expect(struct arena *arena, size_t first, size_t nr, uint64_t stamp)
{
	for (size_t page = first; page < first + nr; page++) {
		arena->stamps[page] = stamp;
		arena->freed[page] = false;
	}
}

static void map_pages(struct arena *arena, size_t first, size_t nr, int extra)
{
	void *wanted = address(arena, first);

	CHECK(mmap(wanted, nr * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | extra, -1, 0) == wanted,
	      "%s: mmap of %zu pages at %p: %m", arena->name, nr, wanted);
	expect(arena, first, nr, 0);
	for (size_t page = first; page < first + nr; page++)
		arena->prots[page] = RW;
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
 * them (that is documented). The moved pages must then be found out one by one. The target may or may not
 * have been unmapped before the refusal.
 *
 * With `keep` the old place stays mapped and is empty then, so the target tells what has come: it is unmapped first.
 */
static void move_pages(struct arena *arena, size_t from, size_t to, size_t nr, bool keep)
{
	void *target = address(arena, to);
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED | (keep ? MREMAP_DONTUNMAP : 0);
	bool moved;

	if (from < to + nr && to < from + nr)
		return;
	if (!all_mapped(arena, from, nr))
		return;
	for (size_t page = from; page < from + nr; page++)
		if (arena->prots[page] != arena->prots[from])
			return;
	if (keep)
		MUST(munmap(target, nr * PAGE));
	moved = mremap(address(arena, from), nr * PAGE, nr * PAGE, flags, target) == target;
	CHECK(moved || errno == EFAULT, "%s: mremap of %zu pages: %m", arena->name, nr);
	for (size_t i = 0; i < nr; i++) {
		if (!moved && (keep ? !is_mapped(arena, to + i) : is_mapped(arena, from + i))) {
			MUST(munmap(address(arena, to + i), PAGE));
			expect(arena, to + i, 1, UNMAPPED);
			continue;
		}
		arena->stamps[to + i] = arena->stamps[from + i];
		arena->freed[to + i] = arena->freed[from + i];
		arena->prots[to + i] = arena->prots[from + i];
		expect(arena, from + i, 1, keep ? 0 : UNMAPPED);
	}
	for (size_t i = 0; i < nr; i++) {
		check_one(arena, to + i, "moved");
		check_one(arena, from + i, "moved away");
	}
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
	expect(arena, first + before, nr - before, 0);
	for (size_t page = first + before; page < first + nr; page++) {
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

static void give_back(struct arena *arena, size_t first, size_t nr, bool at_once)
{
	if (!all_mapped(arena, first, nr))
		return;
	MUST(madvise(address(arena, first), nr * PAGE, at_once ? MADV_DONTNEED : MADV_FREE));
	if (at_once)
		expect(arena, first, nr, 0);
	else
		memset(&arena->freed[first], true, nr);
	for (size_t page = first; page < first + nr; page += 3)
		check_one(arena, page, "given back");
	arena->done[at_once ? DISCARD : FREE]++;
}

/* Anywhere, but every other time near the end of what is within reach: what grows is new there. */
static size_t pick(struct arena *arena, size_t nr)
{
	size_t room = arena->reach - nr + 1, edge = EDGE * nr;

	if (arena->reach == arena->nr_pages || room <= edge || random_below(&arena->random, 2) == 0)
		return random_below(&arena->random, room);
	return room - 1 - random_below(&arena->random, edge);
}

void arena_act(struct arena *arena, size_t max_pages)
{
	uint64_t *random = &arena->random;
	size_t nr = 1 + random_below(random, max_pages);
	size_t first = pick(arena, nr);
	unsigned int what = random_below(random, 33);

	arena->operation++;
	if (what < 12) {
		for (size_t page = first; page < first + nr; page++) {
			check_one(arena, page, "before a write");
			arena_write(arena, page);
		}
		arena->done[WRITE]++;
	} else if (what < 20) {
		for (size_t page = first; page < first + nr; page++)
			check_one(arena, page, "read");
		arena->done[READ]++;
	} else if (what < 23) {
		give_back(arena, first, nr, true);
	} else if (what < 25) {
		MUST(munmap(address(arena, first), nr * PAGE));
		expect(arena, first, nr, UNMAPPED);
		arena->done[UNMAP]++;
	} else if (what < 28) {
		map_pages(arena, first, nr, what == 27 ? MAP_NORESERVE : 0);
		arena->done[MAP]++;
	} else if (what < 30) {
		move_pages(arena, first, pick(arena, nr), nr, what == 29);
		arena->done[MOVE]++;
	} else if (what < 31) {
		grow_pages(arena, first, nr);
		arena->done[GROW]++;
	} else if (what < 32) {
		protect_pages(arena, first, nr);
		arena->done[PROTECT]++;
	} else {
		give_back(arena, first, nr, false);
	}
}

static _Noreturn void be_child(struct arena *arena, bool runs_program, int nr_acts, size_t max_pages)
{
	char *const no_arguments[] = { "true", NULL };

	if (runs_program) {
		execv("/bin/true", no_arguments);
		_exit(9);
	}
	for (int i = 0; i < nr_acts; i++)
		arena_act(arena, max_pages);
	arena_check(arena);
	_exit(0);
}

void arena_fork(struct arena *arena, unsigned long which, int nr_acts, size_t max_pages)
{
	int status;
	pid_t child = MUST(fork());

	if (child == 0)
		be_child(arena, which % 3 == 2, nr_acts, max_pages);
	for (int i = 0; i < nr_acts; i++)
		arena_act(arena, max_pages);
	MUST(waitpid(child, &status, 0));
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: child %lu ended with %x", arena->name, which, status);
}

void arena_check(struct arena *arena)
{
	for (size_t page = 0; page < arena->reach; page++)
		check_one(arena, page, "checked");
}

void arena_make(struct arena *arena, const char *name, void *base, size_t nr_pages, uint64_t which)
{
	size_t shadow = nr_pages * (sizeof *arena->stamps + sizeof *arena->prots + sizeof *arena->freed);
	char *memory = mmap(NULL, shadow, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(memory != MAP_FAILED, "no memory for the shadow of %s: %m", name);
	arena->name = name;
	arena->base = base;
	arena->nr_pages = nr_pages;
	arena->stamps = (uint64_t *)memory;
	arena->prots = (unsigned char *)memory + nr_pages * sizeof *arena->stamps;
	arena->freed = (bool *)arena->prots + nr_pages;
	arena->reach = nr_pages;
	arena->random = random_state(which);
	arena->next_stamp = which << 32;
	/* Nothing may come to lie in the middle: first a reservation, which is then replaced page by page. */
	CHECK(mmap(base, nr_pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == base,
	      "%s cannot be at %p: %m", name, base);
	map_pages(arena, 0, nr_pages, 0);
	for (size_t page = 0; page < nr_pages; page++)
		if (random_below(&arena->random, 8) != 0)
			arena_write(arena, page);
}
