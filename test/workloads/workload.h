/*
 * What the C workloads share.
 *
 * usage: PROGRAM LOG MARKER [SEED]
 *
 * A workload sets up some state, appends "ready" to LOG, and then "step N" with N = 0, 1, 2, ... while it goes on
 * using and checking that state, until the file MARKER exists. Then it checks everything for the last time, appends
 * "done" and exits with status 0. On a wrong observation it appends "FAILED reason" and exits with status 1. It need
 * not be killed: after five minutes without a marker it fails by itself.
 *
 * No workload uses malloc or stdio for its own purposes: what is in the heap is then known.
 */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define PAGE ((size_t)4096)
#define MS ((uint64_t)1000000)
#define SECOND (1000 * MS)

extern uint64_t work_seed;
extern int work_log;
extern const char *work_log_path;

void work_begin(int argc, char **argv);

/* Appends a line to the log, from any thread. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* From any thread: says why and ends the process with status 1. */
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define CHECK(condition, ...)                                                                                          \
	do {                                                                                                           \
		if (!(condition))                                                                                      \
			fail(__VA_ARGS__);                                                                             \
	} while (0)

/* A system call that must not fail; its result. */
#define MUST(call)                                                                                                     \
	({                                                                                                             \
		__auto_type must_result = (call);                                                                      \
		if ((long)must_result == -1)                                                                           \
			fail("line %d: " #call " failed with %m", __LINE__);                                           \
		must_result;                                                                                           \
	})

/* For a loop in the main thread: one step has been done. False when the marker is there. */
bool work_step(uint64_t pause_ns);

/* Ends the process as it should end. */
_Noreturn void work_done(void);

uint64_t now_ns(clockid_t clock);

/* Sleeps without an opinion on how long: for pauses that are not what is tested. */
void pause_ns(uint64_t ns);

/* xorshift64*; the state must not be 0. */
uint64_t next_random(uint64_t *state);

/* A number below `limit`. */
static inline uint64_t random_below(uint64_t *state, uint64_t limit)
{
	return next_random(state) % limit;
}

/* A state for the random numbers of thread or purpose `which`. */
uint64_t random_state(uint64_t which);

/* True when the host is another one than at the start (or at the last call that said so). */
bool has_moved(void);

/* Word i of a page with that stamp. */
static inline uint64_t stamp_word(uint64_t stamp, size_t i)
{
	return stamp == 0 ? 0 : stamp * 0x9e3779b97f4a7c15ull + i;
}

/* Fills a page so that every word of it depends on the stamp and its place; stamp 0 is the page of zeros. */
void stamp_page(void *page, uint64_t stamp);

/* The first wrong word of a page, -1 when all are right. */
int check_page(const void *page, uint64_t stamp);

/* The caller's stack, some pages deeper and back. The result is of no use, but the compiler does not know. */
uint64_t __attribute__((noinline)) use_stack(int depth, uint64_t salt);

#endif
