/*
 * Event counters: their values, up to the largest, semaphores, EFD_NONBLOCK, two descriptors of one counter, and a thread
 * that waits in read(2) for the main thread to count.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "workload.h"

#define LARGEST 0xfffffffffffffffeull
#define UNITS 100000

static int request, answer;

static uint64_t take(int fd)
{
	uint64_t value = 0;

	CHECK(MUST(read(fd, &value, sizeof value)) == sizeof value, "an eventfd gave something else than 8 bytes");
	return value;
}

static void add(int fd, uint64_t value)
{
	CHECK(MUST(write(fd, &value, sizeof value)) == sizeof value, "an eventfd took something else than 8 bytes");
}

static bool has_events(int fd, short events)
{
	struct pollfd poll_fd = { .fd = fd, .events = events };

	return MUST(poll(&poll_fd, 1, 0)) == 1;
}

static void check_flags(int fd, const char *what, int wanted, bool cloexec)
{
	int flags = MUST(fcntl(fd, F_GETFL)), fd_flags = MUST(fcntl(fd, F_GETFD));

	CHECK(flags == (O_RDWR | wanted), "%s has flags %o", what, flags);
	CHECK(fd_flags == (cloexec ? FD_CLOEXEC : 0), "%s has descriptor flags %d", what, fd_flags);
}

static void *worker(void *unused)
{
	for (;;)
		add(answer, 2 * take(request));
	return NULL;
}

int main(int argc, char **argv)
{
	int counter, twin, empty, full, semaphore;
	uint64_t step = 0, units = UNITS, value;
	pthread_t thread;

	work_begin(argc, argv);
	counter = MUST(eventfd(7, EFD_CLOEXEC));
	twin = MUST(dup(counter)); /* shares the counter, is not close-on-exec */
	empty = MUST(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
	full = MUST(eventfd(0, EFD_NONBLOCK));
	add(full, LARGEST);
	semaphore = MUST(eventfd(UNITS, EFD_SEMAPHORE | EFD_NONBLOCK));
	request = MUST(eventfd(0, 0));
	answer = MUST(eventfd(0, 0));
	CHECK(pthread_create(&thread, NULL, worker, NULL) == 0, "no thread");

	while (work_step(3 * MS)) {
		check_flags(counter, "the counter", 0, true);
		check_flags(twin, "its twin", 0, false);
		check_flags(empty, "the empty counter", O_NONBLOCK, true);
		check_flags(full, "the full counter", O_NONBLOCK, false);
		check_flags(semaphore, "the semaphore", O_NONBLOCK, false);

		CHECK(has_events(counter, POLLIN), "the counter cannot be read");
		value = take(twin);
		CHECK(value == 7 + step, "the counter is %lu instead of %lu", value, 7 + step);
		CHECK(!has_events(counter, POLLIN), "the counter is not that of its twin");
		add(counter, 7);
		add(twin, ++step);

		CHECK(read(empty, &value, sizeof value) == -1 && errno == EAGAIN, "the empty counter is not empty");
		value = 1;
		CHECK(write(full, &value, sizeof value) == -1 && errno == EAGAIN, "the full counter is not full");
		CHECK(!has_events(full, POLLOUT) && has_events(empty, POLLOUT), "a full counter can be written");

		CHECK(take(semaphore) == 1, "a semaphore gave more than one unit");
		units--;

		add(request, step);
		value = take(answer);
		CHECK(value == 2 * step, "the waiting thread answers %lu instead of %lu", value, 2 * step);
	}
	CHECK(take(full) == LARGEST, "the full counter has another value");
	for (; units > 0; units--)
		CHECK(take(semaphore) == 1, "a semaphore gave more than one unit");
	CHECK(read(semaphore, &value, sizeof value) == -1 && errno == EAGAIN, "the semaphore has units left");
	work_done();
}
