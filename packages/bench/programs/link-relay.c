/*
 * A slower link: passes TCP connections on with a delay, a jitter and a common rate in each direction.
 *
 * usage: link-relay ADDRESS TARGET-ADDRESS PORT[:TARGET-PORT],... DELAY-us JITTER-us RATE-bytes/s     (rate 0: no
 * limit)
 *
 * Listens on each PORT of ADDRESS, prints "listening", and connects to TARGET-PORT of TARGET-ADDRESS, by default the
 * same port. One thread accepts for each port. For each connection and direction one thread reads and one writes.
 *
 * The reader waits for its turn on the wire, whose rate all connections of a direction share. Connections take turns
 * chunk by chunk, as behind a fair queue. So one with few bytes does not wait behind the buffers of another. A chunk is
 * written DELAY after its last byte left the wire, up to JITTER later or earlier. It is never written before the chunk
 * in front of it: TCP would not deliver it sooner either.
 *
 * `pageferry bench limits` measures and reports the relay's own cost (two copies and two wake-ups).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* With a rate: 1.3 ms at 100 Mbit/s. A small message may have to wait that long for one of another connection. */
#define RATED_CHUNK (16u << 10)
#define FREE_CHUNK (256u << 10)
/* In flight on one connection and direction: 100 ms at 5 Gbit/s. Reading stops there. */
#define FLIGHT_BYTES (64u << 20)

struct chunk {
	struct chunk *next;
	uint64_t due;
	size_t length;
	char bytes[];
};

/* One direction of the wire, for all connections. */
struct wire {
	pthread_mutex_t lock;
	uint64_t free_at;
};

/* One direction of one connection. */
struct pipe {
	int from, to;
	struct wire *wire;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct chunk *first, **last;
	size_t flying;
	bool ended;
};

static struct wire wires[2] = { { PTHREAD_MUTEX_INITIALIZER, 0 }, { PTHREAD_MUTEX_INITIALIZER, 0 } };
static uint64_t delay_ns, jitter_ns, rate;

/* The listening socket and its target; for a connection, its near end. */
struct door {
	int fd;
	struct sockaddr_in target;
};

static _Noreturn void fail(const char *what)
{
	fprintf(stderr, "link-relay: %s: %m\n", what);
	exit(1);
}

static uint64_t now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000ul + at.tv_nsec;
}

static void sleep_until(uint64_t at)
{
	struct timespec time = { at / 1000000000, at % 1000000000 };

	while (at > now() && clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) == EINTR)
		;
}

/* Returns when a chunk that is ready now will have left the wire. */
static uint64_t transmit(struct wire *wire, size_t length)
{
	uint64_t at = now();

	if (rate == 0)
		return at;
	pthread_mutex_lock(&wire->lock);
	if (wire->free_at > at)
		at = wire->free_at;
	at += length * 1000000000ul / rate;
	wire->free_at = at;
	pthread_mutex_unlock(&wire->lock);
	return at;
}

static uint64_t jittered(uint64_t at, unsigned *seed)
{
	int64_t offset = (int64_t)((double)rand_r(seed) / RAND_MAX * 2 * jitter_ns) - (int64_t)jitter_ns;

	return (int64_t)delay_ns + offset > 0 ? at + delay_ns + offset : at;
}

static void enqueue(struct pipe *pipe, struct chunk *chunk)
{
	pthread_mutex_lock(&pipe->lock);
	while (pipe->flying >= FLIGHT_BYTES && !pipe->ended)
		pthread_cond_wait(&pipe->changed, &pipe->lock);
	*pipe->last = chunk;
	pipe->last = &chunk->next;
	pipe->flying += chunk->length;
	pthread_cond_broadcast(&pipe->changed);
	pthread_mutex_unlock(&pipe->lock);
}

static void *read_side(void *argument)
{
	struct pipe *pipe = argument;
	size_t size = rate == 0 ? FREE_CHUNK : RATED_CHUNK;
	unsigned seed = pipe->from;
	uint64_t last_due = 0;

	for (;;) {
		struct chunk *chunk = malloc(sizeof(*chunk) + size);
		uint64_t sent;
		ssize_t got;

		if (chunk == NULL)
			fail("malloc");
		got = read(pipe->from, chunk->bytes, size);
		chunk->next = NULL;
		chunk->length = got > 0 ? got : 0;
		sent = transmit(pipe->wire, chunk->length);
		chunk->due = jittered(sent, &seed);
		if (chunk->due < last_due)
			chunk->due = last_due;
		last_due = chunk->due;
		/* Empty: the end of the stream, which is delayed like the data. */
		enqueue(pipe, chunk);
		if (got <= 0)
			return NULL;
		sleep_until(sent);
	}
}

static bool write_all(int fd, const char *bytes, size_t length)
{
	while (length > 0) {
		ssize_t put = write(fd, bytes, length);

		if (put <= 0)
			return false;
		bytes += put;
		length -= put;
	}
	return true;
}

static struct chunk *dequeue(struct pipe *pipe)
{
	struct chunk *chunk;

	pthread_mutex_lock(&pipe->lock);
	while (pipe->first == NULL)
		pthread_cond_wait(&pipe->changed, &pipe->lock);
	chunk = pipe->first;
	pipe->first = chunk->next;
	if (pipe->first == NULL)
		pipe->last = &pipe->first;
	pipe->flying -= chunk->length;
	pthread_cond_broadcast(&pipe->changed);
	pthread_mutex_unlock(&pipe->lock);
	return chunk;
}

static void *write_side(void *argument)
{
	struct pipe *pipe = argument;

	for (;;) {
		struct chunk *chunk = dequeue(pipe);
		size_t length = chunk->length;
		bool written;

		sleep_until(chunk->due);
		written = length > 0 && write_all(pipe->to, chunk->bytes, length);
		free(chunk);
		if (written)
			continue;
		/* Nothing more is written: the end of its socket wakes the reader, and the rest is dropped. */
		shutdown(pipe->to, SHUT_WR);
		shutdown(pipe->from, length > 0 ? SHUT_RDWR : SHUT_RD);
		pthread_mutex_lock(&pipe->lock);
		pipe->ended = true;
		pthread_cond_broadcast(&pipe->changed);
		pthread_mutex_unlock(&pipe->lock);
		return NULL;
	}
}

/* The memory and the descriptors of a connection are kept: a relay serves one migration and is killed then. */
static void start_pipe(int from, int to, struct wire *wire)
{
	struct pipe *pipe = calloc(1, sizeof(*pipe));
	pthread_t thread;

	if (pipe == NULL)
		fail("calloc");
	*pipe = (struct pipe){ .from = from, .to = to, .wire = wire, .last = &pipe->first };
	pthread_mutex_init(&pipe->lock, NULL);
	pthread_cond_init(&pipe->changed, NULL);
	if (pthread_create(&thread, NULL, read_side, pipe) != 0 || pthread_create(&thread, NULL, write_side, pipe) != 0)
		fail("pthread_create");
}

static struct door *new_door(int fd, struct sockaddr_in target)
{
	struct door *door = malloc(sizeof(*door));

	if (door == NULL)
		fail("malloc");
	*door = (struct door){ fd, target };
	return door;
}

static void start(void *(*run)(void *), void *argument)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, run, argument) != 0)
		fail("pthread_create");
}

static void *serve(void *argument)
{
	struct door *door = argument;
	struct sockaddr_in target = door->target;
	int near = door->fd, far = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

	free(door);
	if (far < 0)
		fail("socket");
	if (connect(far, (struct sockaddr *)&target, sizeof(target)) != 0) {
		close(far);
		close(near);
		return NULL;
	}
	setsockopt(near, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(far, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	start_pipe(near, far, &wires[0]);
	start_pipe(far, near, &wires[1]);
	return NULL;
}

static void *accept_all(void *argument)
{
	struct door *door = argument;

	for (;;) {
		int near = accept4(door->fd, NULL, NULL, SOCK_CLOEXEC);

		if (near < 0)
			fail("accept");
		start(serve, new_door(near, door->target));
	}
}

static struct door *listen_on(struct sockaddr_in here, struct sockaddr_in target)
{
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (struct sockaddr *)&here, sizeof(here)) != 0 || listen(listener, 64) != 0)
		fail("listen");
	return new_door(listener, target);
}

static uint64_t number(const char *text)
{
	char *end;
	uint64_t value = strtoul(text, &end, 10);

	if (*text < '0' || *text > '9' || *end != '\0') {
		fprintf(stderr, "link-relay: %s is not a number\n", text);
		exit(2);
	}
	return value;
}

int main(int argc, char **argv)
{
	struct sockaddr_in here = { .sin_family = AF_INET }, target = here;

	if (argc != 7 || inet_pton(AF_INET, argv[1], &here.sin_addr) != 1 ||
	    inet_pton(AF_INET, argv[2], &target.sin_addr) != 1) {
		fprintf(stderr, "usage: link-relay ADDRESS TARGET-ADDRESS PORT[:TARGET-PORT],... "
				"DELAY-us JITTER-us RATE-bytes/s\n");
		return 2;
	}
	delay_ns = number(argv[4]) * 1000;
	jitter_ns = number(argv[5]) * 1000;
	rate = number(argv[6]);
	signal(SIGPIPE, SIG_IGN);
	/* Inherited by the threads, so that sleeps end on time. */
	prctl(PR_SET_TIMERSLACK, 1);
	for (char *pair = strtok(argv[3], ","); pair != NULL; pair = strtok(NULL, ",")) {
		char *colon = strchr(pair, ':');

		if (colon != NULL)
			*colon = '\0';
		here.sin_port = htons(number(pair));
		target.sin_port = colon == NULL ? here.sin_port : htons(number(colon + 1));
		start(accept_all, listen_on(here, target));
	}
	printf("listening\n");
	fflush(stdout);
	for (;;)
		pause();
}
