/* See probe.h. */
#define _GNU_SOURCE
#include "probe.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

/* How often it checks whether it has moved. The touches begin at most this long after the resume. */
#define POLL_NS (100 * US)
/* Writes that fell due while it could not run are caught up, but at most those of this time. */
#define CATCH_UP_NS (10 * MS)
/* Shorter thinking is spinning: a sleep takes some 50 us more than requested. */
#define SPIN_NS (200 * US)
/* Work before the migration is counted in slots, up to two minutes of it. */
#define WORK_SLOT_NS (10 * MS)
#define NR_WORK_SLOTS 12000
/* Some 20 us of computing. */
#define WORK_UNIT 10000

static struct options options;
static uint64_t *memory;
static uint32_t go;
static uint64_t touching_since;

struct thread {
	pthread_t id;
	uint64_t first, end;
	struct record record;
} __attribute__((aligned(4096)));

static struct thread threads[MAX_THREADS] __attribute__((aligned(4096)));
static struct record total;

/* Events before the touches. */
static struct {
	uint64_t nr_dirtied;
	/* The longest time between two reads of the clock, and the one in which it moved. */
	uint64_t longest_gap_ns, move_gap_ns;
	uint64_t work_started_at_ms;
	uint32_t nr_work_slots;
	uint32_t work[NR_WORK_SLOTS];
	uint32_t dirtied[NR_WORK_SLOTS];
	/* Processor time of the probe. */
	uint32_t cpu_us[NR_WORK_SLOTS];
} before;

static volatile uint64_t sink;

static uint64_t now(clockid_t clock)
{
	struct timespec at;

	clock_gettime(clock, &at);
	return at.tv_sec * 1000000000ul + at.tv_nsec;
}

static void pause_ns(uint64_t ns)
{
	struct timespec time = { ns / 1000000000, ns % 1000000000 };

	nanosleep(&time, NULL);
}

static void think(void)
{
	uint64_t until;

	if (options.think_ns >= SPIN_NS) {
		pause_ns(options.think_ns);
		return;
	}
	until = now(CLOCK_MONOTONIC) + options.think_ns;
	while (now(CLOCK_MONOTONIC) < until)
		;
}

static void *touch(void *argument)
{
	struct thread *thread = argument;
	const struct plan *plan = &options.plan;
	bool chase = plan->pattern == CHASE;
	uint64_t page = plan_page(plan, thread->first), read = 0;

	record_init(&thread->record, options.stall_threshold_ns);
	while (__atomic_load_n(&go, __ATOMIC_ACQUIRE) == 0)
		syscall(SYS_futex, &go, FUTEX_WAIT, 0, NULL, NULL, 0);
	for (uint64_t i = thread->first; i < thread->end; i++) {
		bool writes = plan_writes(plan, i);
		uint64_t *words, start, end;

		if (!chase)
			page = plan_page(plan, i);
		words = memory + page * PAGE_WORDS;
		start = now(CLOCK_MONOTONIC);
		if (writes)
			page_write(words);
		read += *(volatile uint64_t *)&words[1];
		end = now(CLOCK_MONOTONIC);
		/* The check does not replay it, but it compares the pointer of every page. */
		if (chase)
			page = words[1] % plan->nr_pages;
		record_touch(&thread->record, start - touching_since, end - start);
		if (options.think_ns > 0)
			think();
	}
	sink = read;
	return NULL;
}

static void start_threads(void)
{
	uint64_t n = options.plan.nr_pages;

	for (unsigned i = 0; i < options.threads; i++) {
		threads[i].first = n * i / options.threads;
		threads[i].end = n * (i + 1) / options.threads;
		if (pthread_create(&threads[i].id, NULL, touch, &threads[i]) != 0) {
			fprintf(stderr, "probe: no thread\n");
			exit(2);
		}
	}
}

static bool has_moved(const char *home)
{
	struct utsname here;

	return uname(&here) == 0 && strcmp(here.nodename, home) != 0;
}

static void dirty(uint64_t due)
{
	for (; before.nr_dirtied < due; before.nr_dirtied++)
		page_write(memory + plan_dirty_page(&options.plan, before.nr_dirtied) * PAGE_WORDS);
}

static void compute(void)
{
	uint64_t value = sink;

	for (int i = 0; i < WORK_UNIT; i++)
		value = mix(value);
	sink = value;
}

/* Dirties pages, and computes if asked to, until it is on another host. */
static void wait_for_move(void)
{
	struct utsname home;
	uint64_t start, last, last_cpu, credit_ns = 0;

	uname(&home);
	/* Makes its pages present before anything counts. */
	memset(&before, 0xff, sizeof(before));
	memset(&before, 0, sizeof(before));
	last_cpu = now(CLOCK_THREAD_CPUTIME_ID);
	before.work_started_at_ms = now(CLOCK_REALTIME) / MS;
	start = last = now(CLOCK_MONOTONIC);
	for (;;) {
		uint64_t at, cpu, slot, already = before.nr_dirtied;

		if (options.work)
			compute();
		else
			pause_ns(POLL_NS);
		at = now(CLOCK_MONOTONIC);
		if (has_moved(home.nodename)) {
			before.move_gap_ns = at - last;
			return;
		}
		if (at - last > before.longest_gap_ns)
			before.longest_gap_ns = at - last;
		credit_ns += at - last;
		last = at;
		if (credit_ns > CATCH_UP_NS)
			credit_ns = CATCH_UP_NS;
		if (options.dirty_rate > 0) {
			uint64_t due = credit_ns * options.dirty_rate / 1000000000;

			dirty(already + due);
			credit_ns -= due * 1000000000 / options.dirty_rate;
		}
		slot = (at - start) / WORK_SLOT_NS;
		if (slot >= NR_WORK_SLOTS)
			continue;
		before.work[slot]++;
		before.dirtied[slot] += before.nr_dirtied - already;
		cpu = now(CLOCK_THREAD_CPUTIME_ID);
		/* It was seen to go backwards by some us, on a virtual machine whose host had used the processor meanwhile. */
		if (cpu > last_cpu) {
			before.cpu_us[slot] += (cpu - last_cpu) / US;
			last_cpu = cpu;
		}
		before.nr_work_slots = slot + 1;
	}
}

static void print_slots(FILE *out, const char *name, const uint32_t *slots)
{
	fprintf(out, ",\"%s\":[", name);
	for (uint32_t i = 0; i < before.nr_work_slots; i++)
		fprintf(out, "%s%u", i == 0 ? "" : ",", slots[i]);
	fprintf(out, "]");
}

/* Under another name first: a reader that waits for the file must not find half of it. */
static void write_result(uint64_t touch_ns, uint64_t check_ns, uint64_t wrong, uint64_t first_wrong)
{
	char path[4096];
	FILE *out;

	if (snprintf(path, sizeof(path), "%s.new", options.result) >= (int)sizeof(path))
		exit(2);
	out = fopen(path, "w");
	if (out == NULL) {
		fprintf(stderr, "probe: %s: %m\n", path);
		exit(2);
	}
	fprintf(out, "{\"version\":1,\"pattern\":\"%s\",\"pages\":%lu,\"threads\":%u,", pattern_names[options.plan.pattern],
		options.plan.nr_pages, options.threads);
	fprintf(out, "\"touchNs\":%lu,\"checkNs\":%lu,\"wrongPages\":%lu,\"firstWrongPage\":", touch_ns, check_ns, wrong);
	if (wrong == 0)
		fprintf(out, "null");
	else
		fprintf(out, "%lu", first_wrong);
	fprintf(out, ",\"before\":{\"dirtied\":%lu,\"longestGapNs\":%lu,\"moveGapNs\":%lu", before.nr_dirtied,
		before.longest_gap_ns, before.move_gap_ns);
	if (options.work) {
		fprintf(out, ",\"work\":{\"startedAtMs\":%lu,\"slotMs\":%lu", before.work_started_at_ms, WORK_SLOT_NS / MS);
		print_slots(out, "units", before.work);
		print_slots(out, "dirtiedPages", before.dirtied);
		print_slots(out, "cpuUs", before.cpu_us);
		fprintf(out, "}");
	}
	fprintf(out, "},\"touches\":");
	record_print(out, &total);
	fprintf(out, "}\n");
	if (fclose(out) != 0 || rename(path, options.result) != 0) {
		fprintf(stderr, "probe: %s: %m\n", options.result);
		exit(2);
	}
}

int main(int argc, char **argv)
{
	uint64_t touch_ns, check_ns, wrong, first_wrong;

	options_parse(&options, argc, argv);
	plan_init(&options.plan);
	/* So that short sleeps are short. */
	prctl(PR_SET_TIMERSLACK, 1);
	memory = mmap(NULL, options.plan.nr_pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) {
		perror("probe: mmap");
		return 2;
	}
	contents_fill(&options.plan, memory);
	start_threads();
	printf("ready %d\n", getpid());
	fflush(stdout);
	if (!options.now)
		wait_for_move();
	touching_since = now(CLOCK_MONOTONIC);
	__atomic_store_n(&go, 1, __ATOMIC_RELEASE);
	syscall(SYS_futex, &go, FUTEX_WAKE, MAX_THREADS, NULL, NULL, 0);
	for (unsigned i = 0; i < options.threads; i++)
		pthread_join(threads[i].id, NULL);
	touch_ns = now(CLOCK_MONOTONIC) - touching_since;
	record_init(&total, options.stall_threshold_ns);
	for (unsigned i = 0; i < options.threads; i++)
		record_merge(&total, &threads[i].record);
	if (options.corrupt != UINT64_MAX)
		memory[options.corrupt * PAGE_WORDS + PAGE_WORDS - 1] ^= 1;
	check_ns = now(CLOCK_MONOTONIC);
	wrong = contents_check(&options.plan, memory, before.nr_dirtied, &first_wrong);
	check_ns = now(CLOCK_MONOTONIC) - check_ns;
	write_result(touch_ns, check_ns, wrong, first_wrong);
	if (wrong != 0)
		fprintf(stderr, "probe: %lu wrong pages, the first is %lu\n", wrong, first_wrong);
	return wrong == 0 ? 0 : 1;
}
