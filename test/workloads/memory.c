/* Memory of every kind, changed and checked all the time. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "arena.h"

#define RW (PROT_READ | PROT_WRITE)
#define NR 64

static uint64_t randoms;
static uint64_t stamp = 1ull << 48;

/* PROT_NONE memory that has a content. */
static char *hidden;
static uint64_t hidden_stamps[NR];

static void use_hidden(void)
{
	size_t page = random_below(&randoms, NR);

	MUST(mprotect(hidden, NR * PAGE, RW));
	for (size_t i = 0; i < NR; i++)
		CHECK(check_page(hidden + i * PAGE, hidden_stamps[i]) < 0, "page %zu of PROT_NONE memory is wrong", i);
	stamp_page(hidden + page * PAGE, hidden_stamps[page] = ++stamp);
	MUST(mprotect(hidden, NR * PAGE, PROT_NONE));
}

/* A stack of our own that the kernel grows downwards. */
static char *grow_top = (char *)0x200000000000;
static size_t nr_grown = 4;
static uint64_t grown_stamps[NR * 8];

static void use_growing(void)
{
	for (size_t i = 1; i <= nr_grown; i++)
		CHECK(check_page(grow_top - i * PAGE, grown_stamps[i]) < 0, "page %zu of the growing area is wrong", i);
	if (nr_grown + 3 < NR * 8) {
		/* Two pages at a time: the one that is skipped must read as zeros. */
		nr_grown += 2;
		stamp_page(grow_top - nr_grown * PAGE, grown_stamps[nr_grown] = ++stamp);
		grown_stamps[nr_grown - 1] = 0;
	}
	stamp_page(grow_top - PAGE, grown_stamps[1] = ++stamp);
}

/* The heap between the break at the start and the break now. */
static char *heap;
static size_t nr_heap;
static uint64_t heap_stamps[NR * 4];

static void use_heap(void)
{
	size_t wanted = random_below(&randoms, NR * 4);

	CHECK(sbrk(0) == heap + nr_heap * PAGE, "the break is %p instead of %p", sbrk(0), heap + nr_heap * PAGE);
	for (size_t i = 0; i < nr_heap; i++)
		CHECK(check_page(heap + i * PAGE, heap_stamps[i]) < 0, "page %zu of the heap is wrong", i);
	MUST(brk(heap + wanted * PAGE));
	for (; nr_heap < wanted; nr_heap++) {
		CHECK(check_page(heap + nr_heap * PAGE, 0) < 0, "a new page of the heap is not zeros");
		heap_stamps[nr_heap] = nr_heap % 3 == 0 ? 0 : ++stamp;
		if (heap_stamps[nr_heap] != 0)
			stamp_page(heap + nr_heap * PAGE, heap_stamps[nr_heap]);
	}
	nr_heap = wanted;
}

/* A file mapped twice: privately, with some pages written, and shared. */
static char *private_map, *shared_map;
static int file, other_file;
static uint64_t private_stamps[NR], shared_stamps[NR];

static int make_file(const char *suffix, uint64_t *stamps)
{
	char path[500], page[PAGE];
	int fd;

	snprintf(path, sizeof path, "%s.%s", work_log_path, suffix);
	fd = MUST(open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
	for (size_t i = 0; i < NR; i++) {
		stamp_page(page, stamps[i] = ++stamp);
		MUST(write(fd, page, PAGE));
	}
	return fd;
}

static void use_files(void)
{
	static uint64_t in_file[NR];
	size_t page = random_below(&randoms, NR);
	char buffer[PAGE];

	if (in_file[0] == 0)
		memcpy(in_file, private_stamps, sizeof in_file);
	for (size_t i = 0; i < NR; i++) {
		CHECK(check_page(private_map + i * PAGE, private_stamps[i]) < 0, "page %zu of a private mapping", i);
		CHECK(check_page(shared_map + i * PAGE, shared_stamps[i]) < 0, "page %zu of a shared mapping", i);
	}
	/* Half of the private pages stay the file's. */
	if (page % 2 == 0)
		stamp_page(private_map + page * PAGE, private_stamps[page] = ++stamp);
	stamp_page(shared_map + page * PAGE, shared_stamps[page] = ++stamp);
	MUST(pread(file, buffer, PAGE, page * PAGE));
	CHECK(check_page(buffer, in_file[page]) < 0, "a write to private memory reached page %zu of the file", page);
	MUST(pread(other_file, buffer, PAGE, page * PAGE));
	CHECK(check_page(buffer, shared_stamps[page]) < 0, "a write to shared memory did not reach the file");
	/* A written page given back becomes the file's again. */
	if (random_below(&randoms, 8) == 0) {
		MUST(madvise(private_map + page * PAGE, PAGE, MADV_DONTNEED));
		private_stamps[page] = in_file[page];
	}
}

static char *shared_anonymous;
static uint64_t anonymous_stamps[NR];

static void use_shared_anonymous(void)
{
	size_t page = random_below(&randoms, NR);

	for (size_t i = 0; i < NR; i++)
		CHECK(check_page(shared_anonymous + i * PAGE, anonymous_stamps[i]) < 0, "page %zu of shared memory", i);
	stamp_page(shared_anonymous + page * PAGE, anonymous_stamps[page] = ++stamp);
	/* Discarding shared memory only drops the mapping of the page. */
	MUST(madvise(shared_anonymous, NR * PAGE / 2, MADV_DONTNEED));
}

/* Memory with advice that outlasts the call; it is still there afterwards. */
static char *advised;

static bool has_flag(char *address, const char *flag)
{
	static char text[65536];
	char start[20];
	int fd = MUST(open("/proc/self/smaps", O_RDONLY | O_CLOEXEC));
	bool inside = false, found = false;
	size_t length = 0;
	ssize_t got;

	snprintf(start, sizeof start, "%lx-", (unsigned long)address);
	for (;;) {
		char *line = text, *end;

		got = MUST(read(fd, text + length, sizeof text - 1 - length));
		if (got == 0)
			break;
		length += got;
		text[length] = 0;
		while ((end = strchr(line, '\n')) != NULL) {
			*end = 0;
			if (strncmp(line, start, strlen(start)) == 0)
				inside = true;
			if (inside && strncmp(line, "VmFlags:", 8) == 0) {
				found = strstr(line, flag) != NULL;
				inside = false;
			}
			line = end + 1;
		}
		length = text + length - line;
		memmove(text, line, length);
	}
	close(fd);
	return found;
}

/*
 * Guard regions (madvise(2), Linux 6.13): one that stays, and one that moves. A touch from the kernel is refused instead of
 * being a SIGSEGV. Pages under a guard have lost their content.
 */
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
static char *guarded;
static size_t guard = 4;

static bool is_guard(char *page)
{
	static int pair[2] = { -1, -1 };
	char byte;

	if (pair[0] < 0)
		MUST(pipe2(pair, O_CLOEXEC));
	if (write(pair[1], page, 1) == 1) {
		MUST(read(pair[0], &byte, 1));
		return false;
	}
	CHECK(errno == EFAULT, "a page can neither be read nor not be read: %m");
	return true;
}

static void use_guards(void)
{
	CHECK(is_guard(guarded) && is_guard(guarded + PAGE), "a guard is gone");
	for (size_t i = 2; i < 16; i++) {
		CHECK(is_guard(guarded + i * PAGE) == (i == guard), "page %zu %s a guard", i, i == guard ? "is not" : "is");
		if (i != guard)
			CHECK(check_page(guarded + i * PAGE, i == 2 ? 99 : 0) < 0, "page %zu beside a guard is wrong", i);
	}
	MUST(madvise(guarded + guard * PAGE, PAGE, MADV_GUARD_REMOVE));
	CHECK(check_page(guarded + guard * PAGE, 0) < 0, "a page that was a guard has a content");
	guard = 4 + guard % 12;
	MUST(madvise(guarded + guard * PAGE, PAGE, MADV_GUARD_INSTALL));
}

int main(int argc, char **argv)
{
	struct arena arena = { 0 };
	long step = 0;

	work_begin(argc, argv);
	randoms = random_state(0);
	hidden = MUST(mmap(NULL, NR * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	CHECK(mmap(grow_top - 4 * PAGE, 4 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE,
		   -1, 0) == grow_top - 4 * PAGE,
	      "no growing area: %m");
	heap = (char *)(((uintptr_t)sbrk(0) + PAGE - 1) & ~(PAGE - 1));
	MUST(brk(heap));
	file = make_file("private", private_stamps);
	other_file = make_file("shared", shared_stamps);
	private_map = MUST(mmap(NULL, NR * PAGE, RW, MAP_PRIVATE, file, 0));
	shared_map = MUST(mmap(NULL, NR * PAGE, RW, MAP_SHARED, other_file, 0));
	shared_anonymous = MUST(mmap(NULL, NR * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	advised = MUST(mmap((void *)0x210000000000, 16 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
	MUST(madvise(advised, 16 * PAGE, MADV_DONTFORK));
	MUST(madvise(advised, 16 * PAGE, MADV_DONTDUMP));
	stamp_page(advised + PAGE, 77);
	arena_make(&arena, "arena", (void *)0x220000000000, 2048, 1);

	guarded = MUST(mmap((void *)0x230000000000, 16 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
	stamp_page(guarded + PAGE, 98);
	stamp_page(guarded + 2 * PAGE, 99);
	if (madvise(guarded, 2 * PAGE, MADV_GUARD_INSTALL) == -1) {
		CHECK(errno == EINVAL, "no guard: %m");
		guarded = NULL;
	} else
		MUST(madvise(guarded + guard * PAGE, PAGE, MADV_GUARD_INSTALL));

	while (work_step(2 * MS)) {
		if (guarded != NULL)
			use_guards();
		use_hidden();
		use_growing();
		use_stack(10 + step % 300, step);
		use_heap();
		use_files();
		use_shared_anonymous();
		for (int i = 0; i < 100; i++)
			arena_act(&arena, 40);
		CHECK(check_page(advised + PAGE, 77) < 0, "advised memory is wrong");
		if (step++ % 20 == 0) {
			arena_check(&arena);
			CHECK(has_flag(advised, " dc") && has_flag(advised, " dd"), "madvise is forgotten");
		}
	}
	use_hidden();
	use_growing();
	use_heap();
	use_files();
	use_shared_anonymous();
	arena_check(&arena);
	for (int i = 0; i < NR_KINDS; i++)
		CHECK(arena.done[i] > 0, "operation %d never happened", i);
	CHECK(has_flag(advised, " dc") && has_flag(advised, " dd"), "madvise is forgotten");
	work_done();
}
