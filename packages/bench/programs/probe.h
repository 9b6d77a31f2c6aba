/*
 * The probe of `pageferry bench`: a process that is migrated and times every touch of its memory itself.
 *
 *   fill      every word of every page depends on the page's number; "ready PID" on standard output
 *   wait      writes --dirty-rate pages a second, and looks at the host's name: another one means that it has moved
 *   touch     the threads touch pages by the pattern, each touch timed with CLOCK_MONOTONIC
 *   check     every byte of the memory against what the pattern must have left there
 *   result    one JSON object into --result; exit status 0, or 1 when anything differs
 *
 * The effect of a touch is a function of its number. So the check replays all touches and knows how often every page
 * was written. The probe needs no memory for that while it measures: its own pages would be missing, too.
 */
#ifndef PROBE_H
#define PROBE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define PAGE_BYTES 4096ul
#define PAGE_WORDS (PAGE_BYTES / 8)
#define MAX_THREADS 64
#define US 1000ul
#define MS (1000 * US)

/* pattern.c */

enum pattern { SEQUENTIAL, UNIFORM, ZIPF, STRIDE, CHASE, SHIFT, NR_PATTERNS };
extern const char *const pattern_names[NR_PATTERNS];

/* The page of touch number i of nr_pages, and whether the touch writes. */
struct plan {
	enum pattern pattern;
	uint64_t nr_pages;
	uint64_t seed;
	/* Out of 2^32. */
	uint64_t write_ratio;
	/* Words of a page from here on repeat each other. */
	uint64_t noise_words;
	/* Half of the bits of a page number, rounded up: see permuted(). */
	unsigned half_bits;
	/* Gray et al., "Quickly generating billion-record synthetic databases", SIGMOD 1994, section 3. */
	double zeta, eta, half_power;
};

void plan_init(struct plan *plan);
uint64_t plan_page(const struct plan *plan, uint64_t touch);
bool plan_writes(const struct plan *plan, uint64_t touch);
/* The page of write number i of the time before the migration. */
uint64_t plan_dirty_page(const struct plan *plan, uint64_t i);
/* Random order of all pages: i and the answer are below nr_pages. */
uint64_t permuted(const struct plan *plan, uint64_t i);
uint64_t mix(uint64_t value);

/*
 * contents.c: word 0 counts writes, word 1 is the next page in random order, the others depend on the page only: noise,
 * and from noise_words on the same eight words over and over.
 */

void contents_fill(const struct plan *plan, uint64_t *memory);
/* Compares everything; `first_wrong` is a page, or UINT64_MAX. Returns the number of wrong pages. */
uint64_t contents_check(const struct plan *plan, const uint64_t *memory, uint64_t nr_dirtied, uint64_t *first_wrong);

static inline void page_write(uint64_t *page)
{
	__atomic_fetch_add(page, 1, __ATOMIC_RELAXED);
}

/* record.c */

/* Buckets are 128 to a power of two: less than 1 % wide, as HDR histograms with two digits. Up to 2^40 ns, 18 minutes. */
#define SUB_BITS 7
#define NR_BUCKETS ((40 - SUB_BITS + 1) << SUB_BITS)

/*
 * A touch of this length or more is a stall. One of a present page takes 0.1 us, a page fault of the kernel's own 1 us.
 * Under a hypervisor with shadow page tables the first touch of a present page takes several times that: hence
 * --stall-ns.
 */
#define DEFAULT_STALL_NS (3 * US)

/* Stalls over time: slots of 1 ms, twice as long whenever the slots are full. */
#define NR_SLOTS 512
#define FIRST_SLOT_NS (1 * MS)

struct slot {
	uint32_t touches;
	uint32_t stalls;
	uint64_t stall_ns;
};

struct record {
	uint64_t count, sum_ns, max_ns;
	uint64_t stall_threshold_ns;
	uint64_t stalls, stall_ns;
	uint64_t slot_ns;
	uint32_t buckets[NR_BUCKETS];
	struct slot slots[NR_SLOTS];
};

void record_init(struct record *record, uint64_t stall_threshold_ns);
/* `at_ns` is the begin of the touch, counted from the start of all touching. */
void record_touch(struct record *record, uint64_t at_ns, uint64_t took_ns);
void record_merge(struct record *into, struct record *from);
void record_print(FILE *out, const struct record *record);

/* options.c */

struct options {
	struct plan plan;
	unsigned threads;
	uint64_t size_mib;
	uint64_t think_ns;
	/* Touches of this length or more are stalls. */
	uint64_t stall_threshold_ns;
	/* Pages a second before the migration. */
	uint64_t dirty_rate;
	const char *result;
	/* Touch at once, without a move. */
	bool now;
	/* Compute while waiting, and count the work: for the slowdown. */
	bool work;
	/* Flip a bit of this page before the check, UINT64_MAX: of none. */
	uint64_t corrupt;
};

void options_parse(struct options *options, int argc, char **argv);

#endif
