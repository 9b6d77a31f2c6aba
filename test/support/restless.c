/*
 * Workload of the fault tests: several threads that check themselves all the time.
 *
 *   restless LOG MARKER SEED MIB calm|wild
 *
 * Writes a line with a counter into LOG every 20 ms, "ready" first. When MARKER exists, every page is checked, "ok"
 * is written and the status is 0. Anything wrong: "FAILED ..." and status 1.
 *
 * calm: never changes its memory map, so that it can be compared. wild: also discards, unmaps and moves memory, and
 * while MARKER.fork exists it forks children, which check what they have inherited.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define CHUNK_PAGES 16ul
#define NR_WRITERS 3

struct chunk {
	uint64_t *data;
	uint32_t generation[CHUNK_PAGES]; /* 0: never written or discarded, reads as zeros */
	uint32_t number;
};

static struct chunk *chunks;
static size_t nr_chunks, nr_chunks_all;
static int log_fd, wild;
static const char *marker;
static char fork_marker[4096];
static volatile int stop;
static volatile sig_atomic_t ticks;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Threads that have their mask and their descriptors: when all have, nothing changes any more that a test compares. */
static atomic_size_t nr_begun;
static unsigned long handovers;

static void say(const char *format, ...)
{
	char line[256];
	va_list args;

	va_start(args, format);
	int n = vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	if (write(log_fd, line, (size_t)n) != n)
		_exit(2);
}

static void fail(const char *what, unsigned long a, unsigned long b)
{
	say("FAILED %s %lu %lu\n", what, a, b);
	_exit(1);
}

static uint64_t next(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static uint64_t word(const struct chunk *c, size_t page, size_t i)
{
	uint64_t x = ((uint64_t)c->number << 40) ^ ((uint64_t)page << 32) ^ c->generation[page];

	if (c->generation[page] == 0)
		return 0;
	x = (x + i) * 0x9e3779b97f4a7c15ull;
	return x ^ x >> 29;
}

static void check_page(const struct chunk *c, size_t page)
{
	const volatile uint64_t *data = c->data + page * PAGE / 8;

	for (size_t i = 0; i < PAGE / 8; i += 17)
		if (data[i] != word(c, page, i))
			fail("page of chunk", c->number * CHUNK_PAGES + page, i);
}

static void write_page(struct chunk *c, size_t page)
{
	c->generation[page]++;
	for (size_t i = 0; i < PAGE / 8; i++)
		c->data[page * PAGE / 8 + i] = word(c, page, i);
}

static void *map_chunk(void *where)
{
	void *p = mmap(where, CHUNK_PAGES * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | (where ? MAP_FIXED : 0), -1, 0);

	if (p == MAP_FAILED)
		fail("mmap", (unsigned long)errno, 0);
	return p;
}

static void change_map(struct chunk *c, uint64_t *seed)
{
	size_t first = next(seed) % CHUNK_PAGES, nr = 1 + next(seed) % (CHUNK_PAGES - first);
	char *at = (char *)c->data + first * PAGE;
	void *room;

	switch (next(seed) % 3) {
	case 0:
		if (madvise(at, nr * PAGE, MADV_DONTNEED) != 0)
			fail("madvise", (unsigned long)errno, 0);
		memset(c->generation + first, 0, nr * sizeof(c->generation[0]));
		break;
	case 1:
		map_chunk(c->data);
		memset(c->generation, 0, sizeof(c->generation));
		break;
	case 2:
		room = map_chunk(NULL);
		if (mremap(c->data, CHUNK_PAGES * PAGE, CHUNK_PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room) != room)
			fail("mremap", (unsigned long)errno, 0);
		c->data = room;
		break;
	}
}

static void pause_us(long us)
{
	struct timespec t = { .tv_nsec = us * 1000 };

	nanosleep(&t, NULL);
}

/* Each owns every NR_WRITERS-th chunk, so that nothing needs a lock. */
static void *writer(void *arg)
{
	uint64_t seed = 88172645463325252ull * (1 + (uintptr_t)arg) + 1;
	size_t mine = (uintptr_t)arg;

	nr_begun++;
	while (!stop) {
		for (int i = 0; i < 8; i++) {
			size_t n = next(&seed) % (nr_chunks / NR_WRITERS) * NR_WRITERS + mine;
			size_t page = next(&seed) % CHUNK_PAGES;

			check_page(&chunks[n], page);
			if (next(&seed) % 2)
				write_page(&chunks[n], page);
			if (wild && next(&seed) % 16 == 0)
				change_map(&chunks[n], &seed);
		}
		/* Ten thousand pages a second are read or written: far more than moments that a test hits. */
		pause_us(2000);
	}
	for (size_t n = mine; n < nr_chunks; n += NR_WRITERS)
		for (size_t page = 0; page < CHUNK_PAGES; page++)
			check_page(&chunks[n], page);
	return NULL;
}

/* Values that live in vector registers and nowhere else. */
static void *computer(void *arg)
{
	uint64_t a = 0x0123456789abcdefull, b = 0xfedcba9876543210ull, outA, outB;
	volatile double sum = 0;

	(void)arg;
	nr_begun++;
	while (!stop) {
		__asm__ volatile("movq %2, %%xmm6\n\tmovq %3, %%xmm13\n\t"
				 "mov $200000, %%ecx\n\t"
				 "1: dec %%ecx\n\tjnz 1b\n\t"
				 "movq %%xmm6, %0\n\tmovq %%xmm13, %1"
				 : "=r"(outA), "=r"(outB) : "r"(a), "r"(b) : "xmm6", "xmm13", "ecx", "cc");
		if (outA != a || outB != b)
			fail("xmm", outA, outB);
		sum += 0.5;
		/* A thirtieth of a processor, for all the time that a test takes: services need it, too. */
		pause_us(3000);
	}
	return NULL;
}

static long elapsed_ms(const struct timespec *from)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (now.tv_sec - from->tv_sec) * 1000 + (now.tv_nsec - from->tv_nsec) / 1000000;
}

static void *sleeper(void *arg)
{
	int pipe_fds[2];

	if (pipe2(pipe_fds, O_CLOEXEC) != 0)
		fail("pipe", (unsigned long)errno, 0);
	nr_begun++;
	while (!stop) {
		struct pollfd pfd = { .fd = pipe_fds[0], .events = POLLIN };
		struct timespec from, t = { .tv_nsec = 60000000 };
		int rc;

		clock_gettime(CLOCK_MONOTONIC, &from);
		if (arg) {
			rc = poll(&pfd, 1, 60);
			if (rc != 0)
				fail("poll", (unsigned long)rc, (unsigned long)errno);
		} else {
			rc = nanosleep(&t, NULL);
			if (rc != 0)
				fail("nanosleep", (unsigned long)rc, (unsigned long)errno);
		}
		if (elapsed_ms(&from) < 59)
			fail("slept too short", (unsigned long)elapsed_ms(&from), (uintptr_t)arg);
	}
	return NULL;
}

/* Two threads that hand a mutex back and forth: futexes. */
static void *passer(void *arg)
{
	(void)arg;
	nr_begun++;
	while (!stop) {
		pthread_mutex_lock(&lock);
		handovers++;
		pthread_mutex_unlock(&lock);
		pause_us(1000);
	}
	return NULL;
}

/* Children inherit lazy memory: chunks that no other thread uses (the last ones) must read the same there. */
static void *forker(void *arg)
{
	(void)arg;
	nr_begun++;
	while (!stop) {
		pid_t pid;

		if (access(fork_marker, F_OK) != 0) {
			pause_us(5000);
			continue;
		}
		pid = fork();

		if (pid == 0) {
			for (size_t n = nr_chunks_all - 8; n < nr_chunks_all; n++)
				for (size_t page = 0; page < CHUNK_PAGES; page++)
					check_page(&chunks[n], page);
			_exit(0);
		}
		int status;
		while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
			;
		if (status != 0)
			fail("child", (unsigned long)status, 0);
		pause_us(20000);
	}
	return NULL;
}

static void on_tick(int sig)
{
	(void)sig;
	ticks++;
}

int main(int argc, char **argv)
{
	pthread_t threads[NR_WRITERS + 6];
	size_t nr_threads = 0;
	struct itimerval timer = { .it_interval = { .tv_usec = 10000 }, .it_value = { .tv_usec = 10000 } };
	sigset_t set;

	if (argc != 6)
		return 2;
	log_fd = open(argv[1], O_WRONLY | O_CREAT | O_APPEND, 0644);
	marker = argv[2];
	snprintf(fork_marker, sizeof(fork_marker), "%s.fork", marker);
	nr_chunks = strtoul(argv[4], NULL, 10) * 1048576 / (CHUNK_PAGES * PAGE);
	nr_chunks -= nr_chunks % NR_WRITERS;
	wild = strcmp(argv[5], "wild") == 0;
	size_t table = (nr_chunks + 16) * sizeof(struct chunk);
	chunks = mmap(NULL, table, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *all = mmap(NULL, nr_chunks * CHUNK_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (log_fd < 0 || chunks == MAP_FAILED || all == MAP_FAILED)
		return 2;
	for (size_t n = 0; n < nr_chunks; n++) {
		chunks[n].number = (uint32_t)n + 1;
		chunks[n].data = (void *)(all + n * CHUNK_PAGES * PAGE);
		for (size_t page = 0; page < CHUNK_PAGES; page++)
			if ((n + page) % 5 != 0)
				write_page(&chunks[n], page);
	}
	if (wild) {
		/* Of no writer: children check them. */
		for (int i = 0; i < 8; i++) {
			struct chunk *c = &chunks[nr_chunks + (size_t)i];
			c->number = 1000000 + (uint32_t)i;
			c->data = map_chunk(NULL);
			for (size_t page = 0; page < CHUNK_PAGES; page++)
				write_page(c, page);
		}
	}
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	for (uintptr_t i = 0; i < NR_WRITERS; i++)
		pthread_create(&threads[nr_threads++], NULL, writer, (void *)i);
	pthread_create(&threads[nr_threads++], NULL, computer, NULL);
	pthread_create(&threads[nr_threads++], NULL, sleeper, NULL);
	pthread_create(&threads[nr_threads++], NULL, sleeper, (void *)1);
	pthread_create(&threads[nr_threads++], NULL, passer, NULL);
	pthread_create(&threads[nr_threads++], NULL, passer, NULL);
	if (wild) {
		nr_chunks_all = nr_chunks + 8;
		pthread_create(&threads[nr_threads++], NULL, forker, NULL);
	}
	while (nr_begun < nr_threads)
		pause_us(100);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	/* SA_NODEFER: the mask is the same within the handler, so that who compares masks may look at any moment. */
	struct sigaction action = { .sa_handler = on_tick, .sa_flags = SA_RESTART | SA_NODEFER };
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	say("ready\n");
	for (unsigned long n = 1; access(marker, F_OK) != 0; n++) {
		int before = ticks;
		struct timespec from;

		clock_gettime(CLOCK_MONOTONIC, &from);
		while (elapsed_ms(&from) < 20)
			pause_us(5000);
		/* A thread that waited for a page, or stood still, has been away for long without a tick. */
		for (int i = 0; ticks == before; i++) {
			if (i == 200)
				fail("timer", n, (unsigned long)ticks);
			pause_us(5000);
		}
		say("%lu\n", n);
	}
	stop = 1;
	for (size_t i = 0; i < nr_threads; i++)
		pthread_join(threads[i], NULL);
	say("ok\n");
	return 0;
}
