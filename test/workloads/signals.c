/*
 * Signals and timers: actions, masks and alternate stacks; signals that wait, blocked, with all that came with them, for
 * the process and for each thread; an interval timer and POSIX timers of every kind that must go on ticking.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include "workload.h"

#define NR_THREADS 3
#define STACK_BYTES 32768
#define LONG_TIMER (3600 * SECOND)

static int sig_shared, sig_own, sig_timer, sig_thread_timer, sig_message;
static atomic_ulong nr_alarms, nr_ticks, nr_thread_ticks[NR_THREADS], nr_messages[NR_THREADS];
static atomic_bool stopping;
static pid_t tids[NR_THREADS];
static __thread char *own_stack;
static __thread int own_number = -1;

static bool on_own_stack(void)
{
	char here;

	return &here > own_stack && &here < own_stack + STACK_BYTES;
}

static void on_alarm(int signal, siginfo_t *info, void *context)
{
	sigset_t mask;
	int saved = errno;

	nr_alarms++;
	CHECK(info->si_code == SI_KERNEL, "SIGALRM comes with code %d", info->si_code);
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	CHECK(sigismember(&mask, SIGALRM) && sigismember(&mask, SIGUSR2), "a handler runs with the wrong mask");
	if (own_number < 0)
		CHECK(on_own_stack(), "a handler does not run on the alternate stack");
	/* Long enough to be frozen in here now and then. */
	if (nr_alarms % 8 == 0)
		for (volatile int i = 0; i < 200000; i++)
			;
	errno = saved;
}

static void on_tick(int signal, siginfo_t *info, void *context)
{
	CHECK(info->si_code == SI_TIMER && info->si_value.sival_int == 4711, "a tick comes with code %d, value %d",
	      info->si_code, info->si_value.sival_int);
	nr_ticks++;
}

static void on_thread_tick(int signal, siginfo_t *info, void *context)
{
	int number = info->si_value.sival_int;

	CHECK(info->si_code == SI_TIMER && number == own_number, "the tick of thread %d came to thread %d", number, own_number);
	CHECK(on_own_stack(), "a tick is not on the thread's alternate stack");
	nr_thread_ticks[number]++;
}

static void on_message(int signal, siginfo_t *info, void *context)
{
	CHECK(info->si_code == SI_QUEUE && info->si_pid == getpid(), "a message comes with code %d from %d", info->si_code,
	      info->si_pid);
	CHECK(info->si_value.sival_int == own_number, "the message to thread %d came to thread %d", info->si_value.sival_int,
	      own_number);
	nr_messages[own_number]++;
}

static void set_stack(void)
{
	stack_t stack = { .ss_size = STACK_BYTES };

	own_stack = stack.ss_sp = MUST(mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	MUST(sigaltstack(&stack, NULL));
}

static void check_stack(void)
{
	stack_t stack;

	MUST(sigaltstack(NULL, &stack));
	CHECK(stack.ss_sp == own_stack && stack.ss_size == STACK_BYTES && stack.ss_flags == 0,
	      "the alternate stack is %p, %zu, flags %x", stack.ss_sp, stack.ss_size, stack.ss_flags);
}

static void own_mask(int number, sigset_t *mask)
{
	sigemptyset(mask);
	sigaddset(mask, sig_shared);
	sigaddset(mask, sig_own);
	sigaddset(mask, SIGALRM);
	if (number >= 0) {
		sigaddset(mask, sig_timer);
		sigaddset(mask, SIGRTMIN + 10 + number);
	} else {
		sigdelset(mask, SIGALRM);
	}
}

static void check_mask(void)
{
	sigset_t wanted, mask;

	own_mask(own_number, &wanted);
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	for (int signal = 1; signal < SIGRTMAX; signal++)
		if (signal < 32 || signal >= SIGRTMIN)
			CHECK(sigismember(&mask, signal) == sigismember(&wanted, signal), "thread %d: signal %d is %sblocked",
			      own_number, signal, sigismember(&mask, signal) ? "" : "not ");
}

static void queue_to(pid_t tid, int signal, int value)
{
	siginfo_t info = { .si_signo = signal, .si_code = SI_QUEUE };

	info.si_pid = getpid();
	info.si_uid = getuid();
	info.si_value.sival_int = value;
	MUST(syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, signal, &info));
}

/* What was queued long ago must come out in order, with everything. */
static void take(int signal, int value)
{
	struct timespec at_once = { 0 };
	siginfo_t info;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, signal);
	CHECK(sigtimedwait(&set, &info, &at_once) == signal, "thread %d: signal %d does not wait: %m", own_number, signal);
	CHECK(info.si_code == SI_QUEUE && info.si_value.sival_int == value && info.si_pid == getpid() &&
		      info.si_uid == getuid(),
	      "thread %d: signal %d came with code %d, value %d (not %d), pid %d, uid %d", own_number, signal, info.si_code,
	      info.si_value.sival_int, value, info.si_pid, info.si_uid);
}

static void take_nothing(int signal)
{
	struct timespec at_once = { 0 };
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, signal);
	CHECK(sigtimedwait(&set, NULL, &at_once) == -1 && errno == EAGAIN, "signal %d came more often than it was sent", signal);
}

static timer_t make_timer(int notify, int signal, int value, pid_t tid, uint64_t first, uint64_t interval)
{
	struct sigevent event = { .sigev_notify = notify, .sigev_signo = signal };
	struct itimerspec spec = { { interval / SECOND, interval % SECOND }, { first / SECOND, first % SECOND } };
	timer_t timer;

	event.sigev_value.sival_int = value;
	event._sigev_un._tid = tid;
	MUST(timer_create(CLOCK_MONOTONIC, &event, &timer));
	MUST(timer_settime(timer, 0, &spec, NULL));
	return timer;
}

static void *run(void *argument)
{
	sigset_t mask;

	own_number = (int)(uintptr_t)argument;
	own_mask(own_number, &mask);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	set_stack();
	for (int i = 0; i < 3; i++)
		queue_to(gettid(), sig_own, own_number * 100 + i);
	tids[own_number] = gettid();
	while (!stopping) {
		check_mask();
		check_stack();
		pause_ns(MS);
	}
	for (int i = 0; i < 3; i++)
		take(sig_own, own_number * 100 + i);
	take_nothing(sig_own);
	return NULL;
}

static void check_actions(void)
{
	struct sigaction action;

	MUST(sigaction(SIGALRM, NULL, &action));
	CHECK(action.sa_sigaction == on_alarm && (action.sa_flags & (SA_SIGINFO | SA_ONSTACK | SA_RESTART)) ==
							 (SA_SIGINFO | SA_ONSTACK | SA_RESTART),
	      "the action of SIGALRM has changed");
	CHECK(sigismember(&action.sa_mask, SIGUSR2) == 1, "the mask of the action of SIGALRM has changed");
	MUST(sigaction(SIGHUP, NULL, &action));
	CHECK(action.sa_handler == SIG_IGN, "SIGHUP is not ignored any more");
	MUST(sigaction(SIGTERM, NULL, &action));
	CHECK(action.sa_handler == SIG_DFL, "SIGTERM is not at its default any more");
	kill(getpid(), SIGHUP);
}

static void set_action(int signal, void (*handler)(int, siginfo_t *, void *))
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART };

	sigaddset(&action.sa_mask, SIGUSR2);
	MUST(sigaction(signal, &action, NULL));
}

/* Each counter must rise within this time, wherever the process is. */
static void check_ticking(void)
{
	static unsigned long last[2 + 2 * NR_THREADS];
	static uint64_t since[2 + 2 * NR_THREADS];
	uint64_t now = now_ns(CLOCK_MONOTONIC);

	for (int i = 0; i < 2 + 2 * NR_THREADS; i++) {
		unsigned long count = i == 0   ? nr_alarms
				      : i == 1 ? nr_ticks
				      : i % 2  ? nr_messages[(i - 2) / 2]
					       : nr_thread_ticks[(i - 2) / 2];

		if (count != last[i] || since[i] == 0)
			since[i] = now;
		last[i] = count;
		CHECK(now - since[i] < 10 * SECOND, "timer or message %d has stopped at %lu", i, count);
	}
}

int main(int argc, char **argv)
{
	pthread_t threads[NR_THREADS];
	timer_t long_timer, thread_timer;
	struct itimerspec left;
	uint64_t armed, elapsed;
	sigset_t mask;
	long step = 0;

	work_begin(argc, argv);
	sig_shared = SIGRTMIN + 1;
	sig_own = SIGRTMIN + 2;
	sig_timer = SIGRTMIN + 3;
	sig_thread_timer = SIGRTMIN + 4;
	sig_message = SIGRTMIN + 5;
	signal(SIGHUP, SIG_IGN);
	set_action(SIGALRM, on_alarm);
	set_action(sig_timer, on_tick);
	set_action(sig_thread_timer, on_thread_tick);
	set_action(sig_message, on_message);
	set_stack();
	own_mask(-1, &mask);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	for (int i = 0; i < 4; i++)
		MUST(sigqueue(getpid(), sig_shared, (union sigval){ .sival_int = 1000 + i }));
	for (uintptr_t i = 0; i < NR_THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, run, (void *)i) == 0, "no thread");
	for (int i = 0; i < NR_THREADS; i++)
		while (*(volatile pid_t *)&tids[i] == 0)
			pause_ns(MS);

	MUST(setitimer(ITIMER_REAL, &(struct itimerval){ { 0, 7000 }, { 0, 7000 } }, NULL));
	make_timer(SIGEV_SIGNAL, sig_timer, 4711, 0, 5 * MS, 11 * MS);
	/* An id in between stays free, as in a program that deletes timers. */
	MUST(timer_delete(make_timer(SIGEV_NONE, 0, 0, 0, SECOND, 0)));
	for (int i = 0; i < NR_THREADS; i++)
		thread_timer = make_timer(SIGEV_THREAD_ID, sig_thread_timer, i, tids[i], 5 * MS, (9 + i) * MS);
	long_timer = make_timer(SIGEV_NONE, 0, 0, 0, LONG_TIMER, 60 * SECOND);
	armed = now_ns(CLOCK_MONOTONIC);

	while (work_step(MS)) {
		for (int i = 0; i < NR_THREADS; i++)
			if (step % 4 == i)
				queue_to(tids[i], sig_message, i);
		check_mask();
		check_stack();
		check_actions();
		check_ticking();
		MUST(timer_gettime(long_timer, &left));
		elapsed = now_ns(CLOCK_MONOTONIC) - armed;
		uint64_t remaining = left.it_value.tv_sec * SECOND + left.it_value.tv_nsec;

		CHECK(left.it_interval.tv_sec == 60, "the interval of a timer has changed");
		/* Frozen time may count or not. */
		CHECK(remaining + elapsed + 20 * SECOND > LONG_TIMER && remaining + elapsed < LONG_TIMER + 20 * SECOND,
		      "a timer has %lu ns left after %lu ns", remaining, elapsed);
		step++;
	}
	stopping = true;
	for (int i = 0; i < NR_THREADS; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < 4; i++)
		take(sig_shared, 1000 + i);
	take_nothing(sig_shared);
	MUST(timer_gettime(thread_timer, &left));
	CHECK(left.it_interval.tv_nsec == (long)((9 + NR_THREADS - 1) * MS), "the interval of a thread's timer has changed");
	work_done();
}
