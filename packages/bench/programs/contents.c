/* What the memory contains, and whether it still does. */
#include "probe.h"

#include <stdlib.h>

static uint64_t *page_at(const uint64_t *memory, uint64_t page)
{
	return (uint64_t *)memory + page * PAGE_WORDS;
}

/* Words 2 and on: no two pages have a word in common, and none is zero. */
static uint64_t word_of(const struct plan *plan, uint64_t stamp, uint64_t i)
{
	return stamp + (i < plan->noise_words ? i : PAGE_WORDS + i % 8) * 0x9e3779b97f4a7c15;
}

void contents_fill(const struct plan *plan, uint64_t *memory)
{
	for (uint64_t page = 0; page < plan->nr_pages; page++) {
		uint64_t *words = page_at(memory, page), stamp = mix(plan->seed ^ page << 20);

		words[0] = 0;
		for (uint64_t i = 2; i < PAGE_WORDS; i++)
			words[i] = word_of(plan, stamp, i);
	}
	for (uint64_t i = 0; i < plan->nr_pages; i++)
		page_at(memory, permuted(plan, i))[1] = permuted(plan, (i + 1) % plan->nr_pages);
}

static bool page_is_right(const struct plan *plan, const uint64_t *words, uint64_t page, uint64_t writes, uint64_t next)
{
	uint64_t stamp = mix(plan->seed ^ page << 20), difference = 0;

	for (uint64_t i = 2; i < PAGE_WORDS; i++)
		difference |= words[i] ^ word_of(plan, stamp, i);
	return difference == 0 && words[0] == writes && words[1] == next;
}

uint64_t contents_check(const struct plan *plan, const uint64_t *memory, uint64_t nr_dirtied, uint64_t *first_wrong)
{
	uint32_t *writes = calloc(plan->nr_pages, sizeof(*writes));
	uint64_t wrong = 0;

	*first_wrong = UINT64_MAX;
	if (writes == NULL) {
		perror("probe: calloc");
		exit(2);
	}
	for (uint64_t i = 0; i < nr_dirtied; i++)
		writes[plan_dirty_page(plan, i)]++;
	for (uint64_t i = 0; i < plan->nr_pages; i++)
		if (plan_writes(plan, i))
			writes[plan_page(plan, i)]++;
	for (uint64_t i = 0; i < plan->nr_pages; i++) {
		uint64_t page = permuted(plan, i), next = permuted(plan, (i + 1) % plan->nr_pages);

		if (page_is_right(plan, page_at(memory, page), page, writes[page], next))
			continue;
		wrong++;
		if (page < *first_wrong)
			*first_wrong = page;
	}
	free(writes);
	return wrong;
}
