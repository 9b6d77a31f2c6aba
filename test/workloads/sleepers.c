/*
 * A thread for each way to wait. No wait may end early, none may end with an error that no signal caused, and none may
 * end much too late: a wait that is interrupted by a move goes on with the time that remains.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "workload.h"

/* What scheduling, the freeze and a lazy page or two may add. A wait that began anew would take longer by more. */
#define SLACK (2400 * MS) /* less than the long waits: one that began anew would show */

static atomic_bool stopping;
static atomic_ulong nr_waits[32];

static struct timespec spec_of(uint64_t ns)
{
	return (struct timespec){ ns / SECOND, ns % SECOND };
}

static int by_nanosleep(uint64_t ns)
{
	struct timespec spec = spec_of(ns);

	return nanosleep(&spec, NULL);
}

static int by_nanosleep_with_rest(uint64_t ns)
{
	struct timespec spec = spec_of(ns), rest = { 77, 77 };
	int result = nanosleep(&spec, &rest);

	return result;
}

static int by_clock_nanosleep(uint64_t ns)
{
	struct timespec spec = spec_of(ns);

	return errno = clock_nanosleep(CLOCK_MONOTONIC, 0, &spec, NULL);
}

static int by_boottime_sleep(uint64_t ns)
{
	struct timespec spec = spec_of(ns);

	return errno = clock_nanosleep(CLOCK_BOOTTIME, 0, &spec, NULL);
}

static int by_absolute_sleep(uint64_t ns)
{
	struct timespec spec = spec_of(now_ns(CLOCK_MONOTONIC) + ns);

	return errno = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &spec, NULL);
}

static int by_absolute_realtime(uint64_t ns)
{
	struct timespec spec = spec_of(now_ns(CLOCK_REALTIME) + ns);

	return errno = clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &spec, NULL);
}

static int by_poll(uint64_t ns)
{
	return poll(NULL, 0, (int)((ns + MS - 1) / MS));
}

/* A descriptor that never has anything to say. */
static int quiet_pipe[2];

static int by_poll_pipe(uint64_t ns)
{
	struct pollfd descriptor = { .fd = quiet_pipe[0], .events = POLLIN };

	return poll(&descriptor, 1, (int)((ns + MS - 1) / MS));
}

static int by_ppoll(uint64_t ns)
{
	struct timespec spec = spec_of(ns);
	sigset_t mask;

	sigfillset(&mask);
	return ppoll(NULL, 0, &spec, &mask);
}

static int by_select(uint64_t ns)
{
	struct timeval time = { ns / SECOND, (ns % SECOND + 999) / 1000 };

	return select(0, NULL, NULL, NULL, &time);
}

static int by_pselect(uint64_t ns)
{
	struct timespec spec = spec_of(ns);
	fd_set set;

	FD_ZERO(&set);
	FD_SET(quiet_pipe[0], &set);
	return pselect(quiet_pipe[0] + 1, &set, NULL, NULL, &spec, NULL);
}

static int expect_timeout(long result, const char *call, int wanted)
{
	CHECK(result == -1 && errno == wanted, "%s ended with %ld, %m", call, result);
	return 0;
}

static int by_futex(uint64_t ns)
{
	struct timespec spec = spec_of(ns);
	uint32_t word = 5;

	return expect_timeout(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 5, &spec, NULL, 0), "futex", ETIMEDOUT);
}

static int by_futex_bitset(uint64_t ns)
{
	struct timespec spec = spec_of(now_ns(CLOCK_MONOTONIC) + ns);
	uint32_t word = 5;

	return expect_timeout(syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 5, &spec, NULL, ~0), "futex with bits",
			      ETIMEDOUT);
}

static int by_sigtimedwait(uint64_t ns)
{
	struct timespec spec = spec_of(ns);
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGRTMAX);
	return expect_timeout(sigtimedwait(&set, NULL, &spec), "sigtimedwait", EAGAIN);
}

static int by_timerfd(uint64_t ns)
{
	struct itimerspec spec = { .it_value = spec_of(ns) };
	int timer = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
	uint64_t ticks = 0;

	MUST(timerfd_settime(timer, 0, &spec, NULL));
	CHECK(read(timer, &ticks, sizeof ticks) == sizeof ticks && ticks == 1, "a timerfd gave %lu, %m", ticks);
	MUST(close(timer));
	return 0;
}

static int by_semaphore(uint64_t ns)
{
	struct timespec spec = spec_of(now_ns(CLOCK_REALTIME) + ns);
	sem_t semaphore;

	sem_init(&semaphore, 0, 0);
	return expect_timeout(sem_timedwait(&semaphore, &spec), "sem_timedwait", ETIMEDOUT);
}

static int by_condition(uint64_t ns)
{
	struct timespec spec = spec_of(now_ns(CLOCK_REALTIME) + ns);
	pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
	int error;

	pthread_mutex_lock(&mutex);
	do
		error = pthread_cond_timedwait(&condition, &mutex, &spec);
	while (error == 0);
	CHECK(error == ETIMEDOUT, "pthread_cond_timedwait: %s", strerror(error));
	return 0;
}

static const struct {
	const char *name;
	int (*wait)(uint64_t ns);
} ways[] = {
	{ "nanosleep", by_nanosleep },
	{ "nanosleep with a rest", by_nanosleep_with_rest },
	{ "clock_nanosleep", by_clock_nanosleep },
	{ "clock_nanosleep of CLOCK_BOOTTIME", by_boottime_sleep },
	{ "absolute clock_nanosleep", by_absolute_sleep },
	{ "absolute clock_nanosleep of CLOCK_REALTIME", by_absolute_realtime },
	{ "poll", by_poll },
	{ "poll of a pipe", by_poll_pipe },
	{ "ppoll", by_ppoll },
	{ "select", by_select },
	{ "pselect", by_pselect },
	{ "futex", by_futex },
	{ "futex with bits", by_futex_bitset },
	{ "sigtimedwait", by_sigtimedwait },
	{ "timerfd", by_timerfd },
	{ "sem_timedwait", by_semaphore },
	{ "pthread_cond_timedwait", by_condition },
};

#define NR_WAYS (sizeof ways / sizeof *ways)

/* Two threads for each way: one with short waits, one with waits that are longer than a whole migration takes. */
static void *wait_again_and_again(void *argument)
{
	size_t way = (uintptr_t)argument % NR_WAYS;
	bool long_one = (uintptr_t)argument >= NR_WAYS;
	uint64_t random = random_state((uintptr_t)argument);

	while (!stopping) {
		uint64_t ns = long_one ? 2500 * MS : 5 * MS + random_below(&random, 100 * MS);
		uint64_t began = now_ns(CLOCK_MONOTONIC), took;
		int result = ways[way].wait(ns);

		took = now_ns(CLOCK_MONOTONIC) - began;
		CHECK(result == 0, "%s ended with %d, %m", ways[way].name, result);
		/* The clocks differ a little in how they are slewed. */
		CHECK(took + MS >= ns, "%s of %lu us took only %lu us", ways[way].name, ns / 1000, took / 1000);
		CHECK(took < ns + SLACK, "%s of %lu us took %lu us", ways[way].name, ns / 1000, took / 1000);
		nr_waits[way]++;
	}
	return NULL;
}

/* Waits without an end, which only a signal or a byte may end. */

static atomic_ulong nr_handled, nr_paused, nr_bytes;
static pthread_t pauser;
static int work_pipe[2];

static void on_signal(int signal)
{
	nr_handled++;
}

static void *pause_again_and_again(void *argument)
{
	sigset_t blocked, open_set;

	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &blocked, &open_set);
	sigdelset(&open_set, SIGUSR1);
	while (!stopping) {
		unsigned long before = nr_handled;

		/* sigsuspend for its freedom of races; every third time pause itself, where a late signal is sent again. */
		if (nr_paused % 3 == 0) {
			pthread_sigmask(SIG_UNBLOCK, &blocked, NULL);
			if (nr_handled == before)
				CHECK(pause() == -1 && errno == EINTR, "pause ended with %m");
			pthread_sigmask(SIG_BLOCK, &blocked, NULL);
		} else
			CHECK(sigsuspend(&open_set) == -1 && errno == EINTR, "sigsuspend ended with %m");
		CHECK(nr_handled != before || stopping, "a pause ended without a signal");
		nr_paused++;
	}
	return NULL;
}

static void *read_again_and_again(void *argument)
{
	unsigned char byte, expected = 0;

	for (;;) {
		ssize_t got = read(work_pipe[0], &byte, 1);

		if (got == 0)
			return NULL;
		CHECK(got == 1, "read from a pipe ended with %zd, %m", got);
		CHECK(byte == expected, "byte %d came out of the pipe instead of %d", byte, expected);
		expected++;
		nr_bytes++;
	}
}

/* CLOCK_MONOTONIC may gain a little with every migration, but it never loses what CLOCK_REALTIME has counted. */
static void check_clocks(void)
{
	static int64_t ahead;
	uint64_t before, real, after;

	do {
		before = now_ns(CLOCK_MONOTONIC);
		real = now_ns(CLOCK_REALTIME);
		after = now_ns(CLOCK_MONOTONIC);
	} while (after - before > MS / 10);
	CHECK(ahead == 0 || (int64_t)(after - real) + (int64_t)MS >= ahead, "CLOCK_MONOTONIC has lost %ld us",
	      (ahead - (int64_t)(after - real)) / 1000);
	ahead = after - real;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_signal };
	pthread_t threads[2 * NR_WAYS], reader;
	unsigned char byte = 0;
	pthread_attr_t small;

	work_begin(argc, argv);
	MUST(pipe2(quiet_pipe, O_CLOEXEC));
	MUST(pipe2(work_pipe, 0));
	MUST(sigaction(SIGUSR1, &action, NULL));
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	for (uintptr_t i = 0; i < 2 * NR_WAYS; i++)
		CHECK(pthread_create(&threads[i], &small, wait_again_and_again, (void *)i) == 0, "no thread");
	CHECK(pthread_create(&pauser, &small, pause_again_and_again, NULL) == 0, "no thread");
	CHECK(pthread_create(&reader, &small, read_again_and_again, NULL) == 0, "no thread");
	while (work_step(20 * MS)) {
		check_clocks();
		pthread_kill(pauser, SIGUSR1);
		MUST(write(work_pipe[1], &byte, 1));
		byte++;
	}
	stopping = true;
	close(work_pipe[1]);
	pthread_join(reader, NULL);
	/* Until it has seen that we are stopping. */
	while (pthread_tryjoin_np(pauser, NULL) != 0) {
		pthread_kill(pauser, SIGUSR1);
		pause_ns(5 * MS);
	}
	for (size_t i = 0; i < 2 * NR_WAYS; i++)
		pthread_join(threads[i], NULL);
	for (size_t i = 0; i < NR_WAYS; i++)
		CHECK(nr_waits[i] > 1, "nobody waited by %s", ways[i].name);
	CHECK(nr_bytes > 0 && nr_paused > 0, "nothing happened");
	work_done();
}
