#define _GNU_SOURCE
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

/* Freezing and moving takes a fraction of a second; a busy test machine some more. */
#define MAX_JUMP (20 * SECOND)
#define GIVE_UP (300 * SECOND)

uint64_t work_seed = 1;
int work_log = -1;
const char *work_log_path;
static const char *marker;
static uint64_t began, last_monotonic, last_boottime;
static long nr_steps = -1;
static char home[65];

void work_begin(int argc, char **argv)
{
	if (argc < 3) {
		dprintf(2, "usage: %s LOG MARKER [SEED]\n", argv[0]);
		_exit(2);
	}
	work_log_path = argv[1];
	marker = argv[2];
	if (argc > 3)
		work_seed = strtoull(argv[3], NULL, 10);
	work_log = open(work_log_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
	if (work_log < 0) {
		dprintf(2, "%s: %m\n", work_log_path);
		_exit(2);
	}
	began = last_monotonic = now_ns(CLOCK_MONOTONIC);
	last_boottime = now_ns(CLOCK_BOOTTIME);
	has_moved();
}

static void write_line(const char *prefix, const char *format, va_list arguments)
{
	char line[400];
	int saved = errno;
	int length = snprintf(line, sizeof line, "%s", prefix);

	errno = saved; /* for %m */
	length += vsnprintf(line + length, sizeof line - length - 1, format, arguments);
	if (length > (int)sizeof line - 2)
		length = sizeof line - 2;
	line[length++] = '\n';
	if (write(work_log, line, length) != length)
		_exit(3);
	errno = saved;
}

void say(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	write_line("", format, arguments);
	va_end(arguments);
}

void fail(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	write_line("FAILED ", format, arguments);
	va_end(arguments);
	_exit(1);
}

uint64_t now_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * SECOND + now.tv_nsec;
}

void pause_ns(uint64_t ns)
{
	struct timespec left = { .tv_sec = ns / SECOND, .tv_nsec = ns % SECOND };

	while (nanosleep(&left, &left) != 0 && errno == EINTR)
		;
}

static void check_clock(clockid_t clock, const char *name, uint64_t *last)
{
	uint64_t now = now_ns(clock);

	CHECK(now >= *last, "%s went back from %lu to %lu", name, *last, now);
	CHECK(now - *last < MAX_JUMP, "%s jumped from %lu to %lu", name, *last, now);
	*last = now;
}

bool work_step(uint64_t pause)
{
	if (nr_steps < 0)
		say("ready");
	else
		say("step %ld", nr_steps);
	nr_steps++;
	check_clock(CLOCK_MONOTONIC, "CLOCK_MONOTONIC", &last_monotonic);
	check_clock(CLOCK_BOOTTIME, "CLOCK_BOOTTIME", &last_boottime);
	CHECK(last_monotonic - began < GIVE_UP, "nobody made the marker");
	if (access(marker, F_OK) == 0)
		return false;
	if (pause > 0)
		pause_ns(pause);
	return true;
}

void work_done(void)
{
	say("done");
	_exit(0);
}

uint64_t next_random(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	*state = x;
	return (x * 0x2545f4914f6cdd1dull) >> 11;
}

uint64_t random_state(uint64_t which)
{
	uint64_t state = (work_seed + 1) * 0x9e3779b97f4a7c15ull ^ (which + 1) * 0xbf58476d1ce4e5b9ull;

	if (state == 0)
		state = 1;
	next_random(&state);
	next_random(&state);
	return state;
}

bool has_moved(void)
{
	struct utsname names;

	uname(&names);
	if (strcmp(names.nodename, home) == 0)
		return false;
	memcpy(home, names.nodename, sizeof home);
	return true;
}

void stamp_page(void *page, uint64_t stamp)
{
	uint64_t *words = page;

	for (size_t i = 0; i < PAGE / 8; i++)
		words[i] = stamp_word(stamp, i);
}

int check_page(const void *page, uint64_t stamp)
{
	const volatile uint64_t *words = page;

	for (size_t i = 0; i < PAGE / 8; i++)
		if (words[i] != stamp_word(stamp, i))
			return (int)i;
	return -1;
}

uint64_t use_stack(int depth, uint64_t salt)
{
	volatile uint64_t frame[PAGE / 8];
	uint64_t sum;

	for (size_t i = 0; i < PAGE / 8; i++)
		frame[i] = salt + i;
	sum = depth > 0 ? use_stack(depth - 1, salt + 1) : 0;
	for (size_t i = 0; i < PAGE / 8; i++)
		CHECK(frame[i] == salt + i, "the stack is wrong at depth %d", depth);
	return sum + frame[0];
}
