/*
 * What this machine's kernel can do with pages, without pageferry in between: the limits with which the other
 * benchmarks are compared. One JSON object on standard output.
 *
 *   uffdCopy     UFFDIO_COPY into missing pages, by the pages in one call
 *   readv        process_vm_readv(2) from another process, 1 MiB in one call
 *   firstTouch   the first touch of a page that UFFDIO_COPY has installed: the processor only has to find it,
 *                unless a hypervisor with shadow page tables has to, too
 *   localFault   a touch of a missing page that another thread of this process serves
 *
 * All memory is used once before it is measured: a virtual machine's host may have to provide it first.
 *
 * With --install MIB it measures something else, and prints the milliseconds that it took:
 *
 *   copyMs       UFFDIO_COPY of that much, beside a process that has as much, like the machine in a migration. A
 *                virtual machine returns free memory to its host (free page reporting). Getting it back costs
 *                several times a copy into pages that were used just before.
 *   touchMs      the first touch of all these pages
 */
#define _GNU_SOURCE
#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define AREA_BYTES (64ul << 20)
#define AREA_PAGES (AREA_BYTES / PAGE_BYTES)
/* Source of the pages: in the cache, like a receive buffer. */
#define SOURCE_BYTES (1ul << 20)
#define ROUNDS 3
#define NR_FAULTS 4000

static int uffd;
static char *area, *source;
static uint64_t area_bytes = AREA_BYTES;
static struct record record;

static _Noreturn void fail(const char *what)
{
	fprintf(stderr, "kernel-limits: %s: %m\n", what);
	exit(1);
}

static uint64_t now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000ul + at.tv_nsec;
}

static char *map(size_t bytes)
{
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		fail("mmap");
	memset(memory, 1, bytes);
	return memory;
}

static void empty_area(void)
{
	if (madvise(area, area_bytes, MADV_DONTNEED) != 0)
		fail("madvise");
}

static void open_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .range = { (uint64_t)area, area_bytes }, .mode = UFFDIO_REGISTER_MODE_MISSING };

	uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) != 0)
		fail("userfaultfd");
	if (ioctl(uffd, UFFDIO_REGISTER, &range) != 0)
		fail("UFFDIO_REGISTER");
}

static void copy(uint64_t offset, uint64_t bytes)
{
	struct uffdio_copy request = { .dst = (uint64_t)area + offset, .src = (uint64_t)source + offset % SOURCE_BYTES,
				       .len = bytes };

	if (ioctl(uffd, UFFDIO_COPY, &request) != 0)
		fail("UFFDIO_COPY");
}

static double gigabytes_per_s(uint64_t bytes, uint64_t ns)
{
	return (double)bytes / ns;
}

static void measure_copy(unsigned batch)
{
	printf("{\"batchPages\":%u,\"gigabytesPerS\":[", batch);
	for (int round = 0; round < ROUNDS; round++) {
		uint64_t start;

		empty_area();
		start = now();
		for (uint64_t offset = 0; offset < AREA_BYTES; offset += batch * PAGE_BYTES)
			copy(offset, batch * PAGE_BYTES);
		printf("%s%.3f", round == 0 ? "" : ",", gigabytes_per_s(AREA_BYTES, now() - start));
	}
	printf("]}");
}

/* A process that has written to all of `memory`, and is stopped. */
static pid_t start_other(char *memory, uint64_t bytes)
{
	pid_t child = fork();
	int status;

	if (child < 0)
		fail("fork");
	if (child == 0) {
		/* Write, for pages of its own instead of those that it shares with us. */
		memset(memory, 2, bytes);
		raise(SIGSTOP);
		_exit(0);
	}
	if (waitpid(child, &status, WUNTRACED) != child || !WIFSTOPPED(status))
		fail("waitpid");
	return child;
}

static void end_other(pid_t child)
{
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

static void measure_readv(void)
{
	char *remote = map(AREA_BYTES);
	pid_t child = start_other(remote, AREA_BYTES);

	printf("\"readv\":{\"gigabytesPerS\":[");
	for (int round = 0; round < ROUNDS; round++) {
		uint64_t start = now();

		for (uint64_t offset = 0; offset < AREA_BYTES; offset += SOURCE_BYTES) {
			struct iovec here = { source, SOURCE_BYTES }, there = { remote + offset, SOURCE_BYTES };

			if (process_vm_readv(child, &here, 1, &there, 1, 0) != (ssize_t)SOURCE_BYTES)
				fail("process_vm_readv");
		}
		printf("%s%.3f", round == 0 ? "" : ",", gigabytes_per_s(AREA_BYTES, now() - start));
	}
	printf("]},");
	end_other(child);
	munmap(remote, AREA_BYTES);
}

static void *serve(void *unused)
{
	struct uffd_msg message;

	(void)unused;
	for (int i = 0; i < NR_FAULTS; i++) {
		if (read(uffd, &message, sizeof(message)) != sizeof(message))
			fail("read(userfaultfd)");
		copy((message.arg.pagefault.address & -PAGE_BYTES) - (uint64_t)area, PAGE_BYTES);
	}
	return NULL;
}

/* Touches no neighbour, so that prefetching cannot guess it. AREA_PAGES touches reach each page once, since the step is
 * odd. */
static void touch(uint64_t begin, uint64_t nr)
{
	volatile char *page = area + nr * 7919 % AREA_PAGES * PAGE_BYTES;
	uint64_t start = now();

	(void)*page;
	record_touch(&record, start - begin, now() - start);
}

static void measure_first_touch(void)
{
	uint64_t begin = now();

	record_init(&record, DEFAULT_STALL_NS);
	for (int round = 0; round < ROUNDS; round++) {
		empty_area();
		for (uint64_t offset = 0; offset < AREA_BYTES; offset += SOURCE_BYTES)
			copy(offset, SOURCE_BYTES);
		for (uint64_t i = 0; i < AREA_PAGES; i++)
			touch(begin, i);
	}
	printf("\"firstTouch\":");
	record_print(stdout, &record);
	printf(",");
}

static void measure_faults(void)
{
	uint64_t begin = now();
	pthread_t server;

	empty_area();
	record_init(&record, DEFAULT_STALL_NS);
	if (pthread_create(&server, NULL, serve, NULL) != 0)
		fail("pthread_create");
	for (uint64_t i = 0; i < NR_FAULTS; i++)
		touch(begin, i);
	pthread_join(server, NULL);
	printf("\"localFault\":");
	record_print(stdout, &record);
}

static void measure_install(uint64_t bytes)
{
	uint64_t start, copied, touched;
	pid_t other;

	area_bytes = bytes;
	area = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		fail("mmap");
	other = start_other(area, bytes);
	open_uffd();
	start = now();
	for (uint64_t offset = 0; offset < bytes; offset += SOURCE_BYTES)
		copy(offset, SOURCE_BYTES);
	copied = now();
	for (uint64_t offset = 0; offset < bytes; offset += PAGE_BYTES)
		(void)*(volatile char *)(area + offset);
	touched = now();
	end_other(other);
	printf("{\"copyMs\":%.3f,\"touchMs\":%.3f}\n", (copied - start) / 1e6, (touched - copied) / 1e6);
}

int main(int argc, char **argv)
{
	static const unsigned batches[] = { 1, 16, 64, 256 };

	if (argc == 3 && strcmp(argv[1], "--install") == 0) {
		source = map(SOURCE_BYTES);
		measure_install(strtoul(argv[2], NULL, 10) << 20);
		return 0;
	}
	area = map(AREA_BYTES);
	source = map(SOURCE_BYTES);
	printf("{");
	measure_readv();
	open_uffd();
	printf("\"uffdCopy\":[");
	for (unsigned i = 0; i < sizeof(batches) / sizeof(*batches); i++) {
		if (i > 0)
			printf(",");
		measure_copy(batches[i]);
	}
	printf("],");
	measure_first_touch();
	measure_faults();
	printf("}\n");
	return 0;
}
