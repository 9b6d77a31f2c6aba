/* Which page comes next. It is computed from the number of the touch alone; nothing is stored. */
#include "probe.h"

#include <math.h>

/* YCSB's default skew; the most popular thousandth of the pages gets about half of the touches. */
#define ZIPF_THETA 0.99
/* Pages from one touch to the next: 64 KiB, beyond any sensible fault-around. */
#define STRIDE_PAGES 16
/* The working set is this fraction of the memory. */
#define SHIFT_PARTS 16

const char *const pattern_names[NR_PATTERNS] = { "sequential", "uniform", "zipf", "stride", "chase", "shift" };

/* The finalizer of splitmix64. */
uint64_t mix(uint64_t value)
{
	value += 0x9e3779b97f4a7c15;
	value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
	value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
	return value ^ (value >> 31);
}

/* Purposes of random numbers, so that none repeats another's. */
enum { FOR_WRITES = 1, FOR_ZIPF, FOR_SHIFT, FOR_DIRTYING, FOR_ORDER };

static uint64_t random_at(const struct plan *plan, uint64_t purpose, uint64_t i)
{
	return mix(mix(plan->seed * 8 + purpose) ^ i);
}

/* A number below limit; the bias of 2^-64 * limit does not matter. */
static uint64_t below(uint64_t random, uint64_t limit)
{
	return (uint64_t)(((unsigned __int128)random * limit) >> 64);
}

void plan_init(struct plan *plan)
{
	double zeta_2 = 1 + pow(0.5, ZIPF_THETA);

	plan->half_bits = 1;
	while (1ul << (2 * plan->half_bits) < plan->nr_pages)
		plan->half_bits++;
	if (plan->pattern != ZIPF)
		return;
	plan->zeta = 0;
	for (uint64_t i = 1; i <= plan->nr_pages; i++)
		plan->zeta += pow((double)i, -ZIPF_THETA);
	plan->half_power = zeta_2;
	plan->eta = (1 - pow(2.0 / plan->nr_pages, 1 - ZIPF_THETA)) / (1 - zeta_2 / plan->zeta);
}

/* A Feistel network of four rounds permutes the next power of four. Results outside the range go through it again. */
uint64_t permuted(const struct plan *plan, uint64_t i)
{
	uint64_t mask = (1ul << plan->half_bits) - 1;

	do {
		uint64_t left = i >> plan->half_bits, right = i & mask;

		for (uint64_t round = 0; round < 4; round++) {
			uint64_t next = left ^ (random_at(plan, FOR_ORDER, right << 2 | round) & mask);

			left = right;
			right = next;
		}
		i = left << plan->half_bits | right;
	} while (i >= plan->nr_pages);
	return i;
}

static uint64_t zipf_rank(const struct plan *plan, uint64_t random)
{
	double u = (double)(random >> 11) * 0x1p-53;
	double uz = u * plan->zeta;
	uint64_t rank;

	if (uz < 1)
		return 0;
	if (uz < plan->half_power)
		return 1;
	rank = (uint64_t)(plan->nr_pages * pow(plan->eta * u - plan->eta + 1, 1 / (1 - ZIPF_THETA)));
	return rank < plan->nr_pages ? rank : plan->nr_pages - 1;
}

uint64_t plan_page(const struct plan *plan, uint64_t i)
{
	uint64_t n = plan->nr_pages, rows = n / STRIDE_PAGES, window = n / SHIFT_PARTS;

	switch (plan->pattern) {
	case UNIFORM:
	case CHASE:
		return permuted(plan, i);
	case ZIPF:
		return permuted(plan, zipf_rank(plan, random_at(plan, FOR_ZIPF, i)));
	case STRIDE:
		/* nr_pages is a multiple of 256. */
		return i % rows * STRIDE_PAGES + i / rows;
	case SHIFT:
		/* Moves on by half a window after half a window of touches. */
		return (i / (window / 2) * (window / 2) + below(random_at(plan, FOR_SHIFT, i), window)) % n;
	default:
		return i;
	}
}

bool plan_writes(const struct plan *plan, uint64_t i)
{
	return random_at(plan, FOR_WRITES, i) >> 32 < plan->write_ratio;
}

uint64_t plan_dirty_page(const struct plan *plan, uint64_t i)
{
	return below(random_at(plan, FOR_DIRTYING, i), plan->nr_pages);
}
