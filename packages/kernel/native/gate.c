/* See gate.h. */
#include "gate.h"
#include "fill.h"

#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* As memory/src/bitmap.ts: 32768 pages share one chunk, chunks exist only where pages are. */
#define CHUNK_PAGES 32768
#define CHUNK_WORDS (CHUNK_PAGES / 32)
/* Pages that are installed per hold of the lock: some 20 us, which is how long reading a fault waits. */
#define PIECE_PAGES 32
/* A sleeper looks again after this time. The wake-ups only make it sooner. */
#define PATIENCE_NS 1000000
/* After this many sleeps the call returns: a thread that is told to end can do so only outside this file. */
#define MAX_SLEEPS 100
/* Looks at a word before a thread sleeps for it: some microseconds, most of the time for which the lock is held. */
#define SPINS 500
#define GATE_MAGIC 0x65746167u /* "gate" */

struct gate {
	uint32_t magic;
	uint32_t nr_chunks;
	/* 1: the reader of events has the lock or waits for it. */
	uint32_t writer;
	/* Threads that install at this moment. */
	uint32_t readers;
	/* Counts every time events were read. */
	uint32_t generation;
	/* Nothing is installed any more. */
	uint32_t closed;
	/* Only the reader of events can install some pages: moved ones, and those of children. */
	uint32_t others;
	/* Threads that sleep for one of the words above. */
	uint32_t sleepers;
	/* An installer made no progress for long; used by src/install-gate.ts only. */
	uint32_t starving;
	uint32_t reserved[7];
	/* Chunk numbers, ascending; the chunks follow. */
	uint32_t keys[];
};
_Static_assert(offsetof(struct gate, keys) == 64, "src/install-gate.ts");

static uint32_t *chunk_words(struct gate *gate, size_t index)
{
	return gate->keys + gate->nr_chunks + index * CHUNK_WORDS;
}

/* Sleeps until the word changes, or for a while. The caller looks again in any case. */
static void wait_for(struct gate *gate, uint32_t *word, uint32_t value)
{
	struct timespec timeout = { 0, PATIENCE_NS };

	__atomic_fetch_add(&gate->sleepers, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, &timeout, NULL, 0);
	__atomic_fetch_sub(&gate->sleepers, 1, __ATOMIC_SEQ_CST);
}

static void wake(struct gate *gate, uint32_t *word)
{
	/* A sleeper that is not counted yet finds the word changed. */
	if (__atomic_load_n(&gate->sleepers, __ATOMIC_SEQ_CST) != 0)
		syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 0x7fffffff, NULL, NULL, 0);
}

static bool spin_until(const uint32_t *word, uint32_t value)
{
	for (int i = 0; i < SPINS; i++) {
		if (__atomic_load_n(word, __ATOMIC_SEQ_CST) == value)
			return true;
		__builtin_ia32_pause();
	}
	return false;
}

/* The writer announces itself first, so that installers let it pass and it never starves. */
void gate_lock(struct gate *gate)
{
	if (gate == NULL)
		return;
	__atomic_store_n(&gate->writer, 1, __ATOMIC_SEQ_CST);
	while (!spin_until(&gate->readers, 0)) {
		uint32_t readers = __atomic_load_n(&gate->readers, __ATOMIC_SEQ_CST);

		if (readers != 0)
			wait_for(gate, &gate->readers, readers);
	}
}

void gate_unlock(struct gate *gate)
{
	if (gate == NULL)
		return;
	__atomic_fetch_add(&gate->generation, 1, __ATOMIC_SEQ_CST);
	__atomic_store_n(&gate->writer, 0, __ATOMIC_SEQ_CST);
	wake(gate, &gate->writer);
	wake(gate, &gate->generation);
}

static void leave(struct gate *gate)
{
	if (__atomic_sub_fetch(&gate->readers, 1, __ATOMIC_SEQ_CST) == 0)
		wake(gate, &gate->readers);
}

static void enter(struct gate *gate)
{
	for (;;) {
		while (!spin_until(&gate->writer, 0))
			wait_for(gate, &gate->writer, 1);
		__atomic_fetch_add(&gate->readers, 1, __ATOMIC_SEQ_CST);
		/* Either the writer sees us in `readers`, or we see it here. */
		if (__atomic_load_n(&gate->writer, __ATOMIC_SEQ_CST) == 0)
			return;
		leave(gate);
	}
}

/* Index of the first chunk whose number is not below `key`. */
static size_t lower_bound(const struct gate *gate, uint64_t key)
{
	size_t low = 0, high = gate->nr_chunks;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (gate->keys[middle] < key)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static void close_pages(struct gate *gate, uint64_t first, uint64_t end)
{
	for (size_t i = lower_bound(gate, first / CHUNK_PAGES); i < gate->nr_chunks; i++) {
		uint64_t base = (uint64_t)gate->keys[i] * CHUNK_PAGES;
		uint32_t *words = chunk_words(gate, i);
		uint64_t from = first > base ? first - base : 0, to;

		if (base >= end)
			return;
		to = end - base < CHUNK_PAGES ? end - base : CHUNK_PAGES;
		while (from < to) {
			if (from % 32 == 0 && to - from >= 32) {
				words[from / 32] = 0;
				from += 32;
			} else {
				words[from / 32] &= ~(1u << from % 32);
				from++;
			}
		}
	}
}

/* Event addresses are multiples of the page size. */
static void close_bytes(struct gate *gate, uint64_t start, uint64_t end)
{
	close_pages(gate, start / PF_PAGE, end / PF_PAGE);
}

void gate_note(struct gate *gate, const struct uffd_msg *msgs, size_t n)
{
	if (gate == NULL)
		return;
	for (size_t i = 0; i < n; i++) {
		switch (msgs[i].event) {
		case UFFD_EVENT_REMOVE:
		case UFFD_EVENT_UNMAP:
			close_bytes(gate, msgs[i].arg.remove.start, msgs[i].arg.remove.end);
			break;
		case UFFD_EVENT_REMAP:
			close_bytes(gate, msgs[i].arg.remap.from, msgs[i].arg.remap.from + msgs[i].arg.remap.len);
			close_bytes(gate, msgs[i].arg.remap.to, msgs[i].arg.remap.to + msgs[i].arg.remap.len);
			gate->others = 1;
			break;
		case UFFD_EVENT_FORK:
			gate->others = 1;
			break;
		}
	}
}

/* Counts pages from `page` on, one at least and `max` at most, that are all open or all closed; *open says which. */
static uint64_t stretch(struct gate *gate, uint64_t page, uint64_t max, bool *open)
{
	const uint32_t *words = NULL;
	uint64_t n;

	*open = false;
	for (n = 0; n < max; n++) {
		uint64_t bit = (page + n) % CHUNK_PAGES;
		bool here;

		if (n == 0 || bit == 0) {
			uint64_t key = (page + n) / CHUNK_PAGES;
			size_t i = lower_bound(gate, key);

			words = i < gate->nr_chunks && gate->keys[i] == key ? chunk_words(gate, i) : NULL;
		}
		here = words != NULL && (words[bit / 32] >> bit % 32 & 1) != 0;
		if (n == 0)
			*open = here;
		else if (here != *open)
			break;
	}
	return n;
}

bool gate_arg(napi_env env, napi_value value, struct gate **gate)
{
	napi_valuetype type;
	size_t length;
	void *data;

	*gate = NULL;
	if (napi_typeof(env, value, &type) == napi_ok && type == napi_undefined)
		return true;
	if (!pf_bytes(env, value, &data, &length))
		return false;
	*gate = data;
	if (length >= sizeof(struct gate) && (*gate)->magic == GATE_MAGIC &&
	    length == sizeof(struct gate) + (*gate)->nr_chunks * 4ul * (1 + CHUNK_WORDS))
		return true;
	pf_throw_type(env, "this is no gate");
	return false;
}

/* (area, nrChunks) of zeroed shared memory; keys and chunks are the caller's to fill in */
static napi_value gate_format(napi_env env, napi_callback_info info)
{
	napi_value argv[2];
	struct gate *gate;
	size_t length;
	void *data;
	int nr_chunks;

	if (!pf_args(env, info, 2, argv) || !pf_bytes(env, argv[0], &data, &length) ||
	    !pf_int(env, argv[1], &nr_chunks))
		return NULL;
	if (nr_chunks < 0 || length != sizeof(struct gate) + nr_chunks * 4ul * (1 + CHUNK_WORDS) || (uintptr_t)data & 3)
		return pf_throw_type(env, "the gate does not fit its memory");
	gate = data;
	gate->nr_chunks = (uint32_t)nr_chunks;
	gate->magic = GATE_MAGIC;
	return pf_undefined(env);
}

/* (area): when this returns, nothing is being installed, and nothing will be */
static napi_value gate_close(napi_env env, napi_callback_info info)
{
	napi_value argv[1];
	struct gate *gate;

	if (!pf_args(env, info, 1, argv) || !gate_arg(env, argv[0], &gate) || gate == NULL)
		return NULL;
	gate_lock(gate);
	__atomic_store_n(&gate->closed, 1, __ATOMIC_SEQ_CST);
	gate_unlock(gate);
	return pf_undefined(env);
}

enum piece_state { PIECE_DONE, PIECE_AGAIN, PIECE_NO_RANGE, PIECE_CLOSED, PIECE_FAILED };

/* Installs some pages of one run, under the lock; *passed says how far it came. */
static enum piece_state install_piece(struct gate *gate, struct fill *f, uint64_t page, uint64_t nr, uint64_t *passed,
				      int *err, const char **what)
{
	enum piece_state end = PIECE_DONE;

	*passed = 0;
	enter(gate);
	while (*passed < nr && end == PIECE_DONE) {
		bool open;
		uint64_t same = stretch(gate, page + *passed, nr - *passed, &open);
		struct pf_run run = { (double)(page + *passed), (double)same };
		struct fill part = *f;

		if (__atomic_load_n(&gate->closed, __ATOMIC_SEQ_CST)) {
			end = PIECE_CLOSED;
			break;
		}
		if (!open) {
			*passed += same;
			continue;
		}
		part.data += *passed * PF_PAGE;
		switch (fill_runs(&part, &run, 1, err, what)) {
		case FILL_DONE:
			break;
		case FILL_AGAIN:
			end = PIECE_AGAIN;
			break;
		case FILL_NO_RANGE:
			end = PIECE_NO_RANGE;
			break;
		case FILL_GONE:
			end = PIECE_CLOSED;
			break;
		case FILL_FAILED:
			end = PIECE_FAILED;
			break;
		}
		*passed += part.done;
		f->installed = part.installed;
	}
	leave(gate);
	return end;
}

/*
 * (area, fd, runs, nrRuns, data or undefined for zeros, from, counts): installs pages of the table from number `from`
 * on. It adds the number of installed pages to counts[0] and returns:
 *
 *   the number of a page outside every registered area: go on behind it
 *   the number of pages, when all were handled
 *   -1, when the gate is closed or the address space is gone
 *   -2, when events have been waiting for long: go on at counts[1]
 */
static napi_value gate_install(napi_env env, napi_callback_info info)
{
	struct fill f = { .mem_fd = -1, .wake = true };
	uint64_t pages, from, before = 0;
	size_t nr_runs, length, room;
	const char *what = NULL;
	napi_valuetype type;
	napi_value argv[7];
	struct pf_run *runs;
	struct gate *gate;
	double *counts;
	void *data;
	int err = 0, sleeps = 0;

	if (!pf_args(env, info, 7, argv) || !gate_arg(env, argv[0], &gate) || gate == NULL ||
	    !pf_int(env, argv[1], &f.fd) || !pf_runs(env, argv[2], argv[3], &runs, &nr_runs, &pages) ||
	    !pf_u64(env, argv[5], &from) || !pf_bytes(env, argv[6], (void **)&counts, &room))
		return NULL;
	if (napi_typeof(env, argv[4], &type) == napi_ok && type == napi_undefined)
		f.zero = true;
	else if (!pf_bytes(env, argv[4], &data, &length))
		return NULL;
	else if (pages > length / PF_PAGE)
		return pf_throw_type(env, "the run table names more pages than the data holds");
	if (room < 2 * sizeof(double))
		return pf_throw_type(env, "there is no room for the counts");
	for (size_t i = 0; i < nr_runs; i++) {
		uint64_t first = (uint64_t)runs[i].first_page, nr = (uint64_t)runs[i].nr_pages;

		for (uint64_t at = from > before ? from - before : 0; at < nr;) {
			uint32_t generation = __atomic_load_n(&gate->generation, __ATOMIC_SEQ_CST);
			uint64_t piece = nr - at < PIECE_PAGES ? nr - at : PIECE_PAGES, passed;
			enum piece_state end;

			f.data = f.zero ? NULL : (uint8_t *)data + (before + at) * PF_PAGE;
			end = install_piece(gate, &f, first + at, piece, &passed, &err, &what);
			at += passed;
			counts[0] += (double)f.installed;
			f.installed = 0;
			switch (end) {
			case PIECE_DONE:
				break;
			case PIECE_AGAIN:
				/* Events are pending, which only the other thread can read. */
				wait_for(gate, &gate->generation, generation);
				if (++sleeps < MAX_SLEEPS)
					break;
				counts[1] = (double)(before + at);
				return pf_number(env, -2);
			case PIECE_NO_RANGE:
				return pf_number(env, (double)(before + at));
			case PIECE_CLOSED:
				return pf_number(env, -1);
			case PIECE_FAILED:
				return pf_throw(env, what, err, 0);
			}
		}
		before += nr;
	}
	return pf_number(env, (double)pages);
}

void init_gate(napi_env env, napi_value exports)
{
	napi_value object;

	napi_create_object(env, &object);
	pf_export(env, object, "format", gate_format);
	pf_export(env, object, "close", gate_close);
	pf_export(env, object, "install", gate_install);
	pf_set(env, exports, "gate", object);
}
