/* Latencies in logarithmic buckets, and stalls over time. */
#include "probe.h"

#include <string.h>

void record_init(struct record *record, uint64_t stall_threshold_ns)
{
	/* Write every byte: the memory must be present before anything is timed. */
	memset(record, 0xff, sizeof(*record));
	memset(record, 0, sizeof(*record));
	record->slot_ns = FIRST_SLOT_NS;
	record->stall_threshold_ns = stall_threshold_ns;
}

/* Exact below 2^(SUB_BITS + 1), then 2^SUB_BITS buckets to a power of two. */
static unsigned bucket_of(uint64_t ns)
{
	unsigned shift = 0, bucket;

	if (ns >> (SUB_BITS + 1) != 0)
		shift = 63 - __builtin_clzl(ns) - SUB_BITS;
	bucket = (shift << SUB_BITS) + (unsigned)(ns >> shift);
	return bucket < NR_BUCKETS ? bucket : NR_BUCKETS - 1;
}

/* The middle of a bucket. */
static uint64_t bucket_ns(unsigned bucket)
{
	unsigned shift = bucket >> (SUB_BITS + 1) == 0 ? 0 : (bucket >> SUB_BITS) - 1;

	return (((uint64_t)bucket - (shift << SUB_BITS)) << shift) + ((1ul << shift) >> 1);
}

static void slot_add(struct slot *into, const struct slot *from)
{
	into->touches += from->touches;
	into->stalls += from->stalls;
	into->stall_ns += from->stall_ns;
}

static void widen(struct record *record)
{
	for (int i = 0; i < NR_SLOTS / 2; i++) {
		struct slot both = record->slots[2 * i];

		slot_add(&both, &record->slots[2 * i + 1]);
		record->slots[i] = both;
	}
	memset(&record->slots[NR_SLOTS / 2], 0, sizeof(record->slots) / 2);
	record->slot_ns *= 2;
}

/* A stall counts in every slot that it reached into: a slot's sum divided by its length is the threads that waited. */
static void spread_stall(struct record *record, uint64_t from, uint64_t until)
{
	while (from < until) {
		uint64_t slot = from / record->slot_ns, end = (slot + 1) * record->slot_ns;

		if (end > until)
			end = until;
		record->slots[slot].stall_ns += end - from;
		from = end;
	}
}

void record_touch(struct record *record, uint64_t at_ns, uint64_t took_ns)
{
	bool stalled = took_ns >= record->stall_threshold_ns;
	struct slot *slot;

	record->count++;
	record->sum_ns += took_ns;
	if (took_ns > record->max_ns)
		record->max_ns = took_ns;
	record->buckets[bucket_of(took_ns)]++;
	while ((at_ns + took_ns) / record->slot_ns >= NR_SLOTS)
		widen(record);
	slot = &record->slots[at_ns / record->slot_ns];
	slot->touches++;
	slot->stalls += stalled;
	if (!stalled)
		return;
	record->stalls++;
	record->stall_ns += took_ns;
	spread_stall(record, at_ns, at_ns + took_ns);
}

void record_merge(struct record *into, struct record *from)
{
	while (into->slot_ns < from->slot_ns)
		widen(into);
	while (from->slot_ns < into->slot_ns)
		widen(from);
	into->count += from->count;
	into->sum_ns += from->sum_ns;
	if (from->max_ns > into->max_ns)
		into->max_ns = from->max_ns;
	into->stalls += from->stalls;
	into->stall_ns += from->stall_ns;
	for (int i = 0; i < NR_BUCKETS; i++)
		into->buckets[i] += from->buckets[i];
	for (int i = 0; i < NR_SLOTS; i++)
		slot_add(&into->slots[i], &from->slots[i]);
}

void record_print(FILE *out, const struct record *record)
{
	const char *comma = "";
	int last = NR_SLOTS;

	fprintf(out, "{\"count\":%lu,\"sumNs\":%lu,\"maxNs\":%lu,\"stalls\":%lu,\"stallNs\":%lu,\"stallThresholdNs\":%lu,",
		record->count, record->sum_ns, record->max_ns, record->stalls, record->stall_ns,
		record->stall_threshold_ns);
	fprintf(out, "\"buckets\":[");
	for (unsigned i = 0; i < NR_BUCKETS; i++) {
		if (record->buckets[i] == 0)
			continue;
		fprintf(out, "%s[%lu,%u]", comma, bucket_ns(i), record->buckets[i]);
		comma = ",";
	}
	while (last > 0 && record->slots[last - 1].touches == 0 && record->slots[last - 1].stall_ns == 0)
		last--;
	fprintf(out, "],\"series\":{\"slotMs\":%lu,\"touches\":[", record->slot_ns / MS);
	for (int i = 0; i < last; i++)
		fprintf(out, "%s%u", i == 0 ? "" : ",", record->slots[i].touches);
	fprintf(out, "],\"stalls\":[");
	for (int i = 0; i < last; i++)
		fprintf(out, "%s%u", i == 0 ? "" : ",", record->slots[i].stalls);
	fprintf(out, "],\"stallUs\":[");
	for (int i = 0; i < last; i++)
		fprintf(out, "%s%lu", i == 0 ? "" : ",", record->slots[i].stall_ns / US);
	fprintf(out, "]}}");
}
