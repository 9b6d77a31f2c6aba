/*
 * Files that have lost their name while they are in use: open ones (written at random places, with holes, made longer and
 * shorter), made by O_TMPFILE, mapped shared and private, the program itself, the working directory and an open directory.
 * And one that has got another name, open and mapped.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include "workload.h"

#define NR_BLOCKS 4096
#define HOLE (64 << 20)
#define NR_MAPPED 600
#define PROGRAM_NAME "ghosts-program"

static char path[PATH_MAX];
static char block[PAGE];
/* What each block of the scratch file holds; 0: zeros. */
static uint64_t stamps[NR_BLOCKS];
static uint64_t state;

static const char *beside(const char *suffix)
{
	snprintf(path, sizeof path, "%s.%s", work_log_path, suffix);
	return path;
}

static int open_and_unlink(const char *suffix, int flags)
{
	int fd = MUST(open(beside(suffix), O_CREAT | O_EXCL | flags, 0640));

	MUST(unlink(path));
	return fd;
}

static void write_block(int fd, int number, uint64_t stamp)
{
	stamp_page(block, stamp);
	CHECK(pwrite(fd, block, PAGE, number * PAGE) == PAGE, "block %d cannot be written: %m", number);
	stamps[number] = stamp;
}

static void check_block(int fd, int number)
{
	int word;

	CHECK(pread(fd, block, PAGE, number * PAGE) == PAGE, "block %d cannot be read: %m", number);
	word = check_page(block, stamps[number]);
	CHECK(word < 0, "word %d of block %d is wrong, stamp %lu", word, number, (unsigned long)stamps[number]);
}

static void change(int fd)
{
	int number = (int)random_below(&state, NR_BLOCKS);
	int count = 1 + (int)random_below(&state, 20);

	if (number + count > NR_BLOCKS)
		count = NR_BLOCKS - number;
	switch (random_below(&state, 4)) {
	case 0:
		if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, number * PAGE, count * PAGE) != 0)
			break;
		for (int i = 0; i < count; i++)
			stamps[number + i] = 0;
		break;
	case 1: /* What is cut off is gone, what is behind the end again reads as zeros. */
		MUST(ftruncate(fd, (NR_BLOCKS - count) * PAGE));
		MUST(ftruncate(fd, HOLE + NR_BLOCKS * PAGE));
		for (int i = NR_BLOCKS - count; i < NR_BLOCKS; i++)
			stamps[i] = 0;
		CHECK(pwrite(fd, "far", 3, HOLE) == 3, "no data behind the hole: %m");
		break;
	default:
		for (int i = 0; i < count; i++)
			write_block(fd, number + i, next_random(&state) | 1);
	}
}

/* Runs from a copy, which is then replaced by another file of the same name. */
static void become_a_copy(char **argv)
{
	char self[PATH_MAX] = "";
	struct stat stat;
	int from, to;

	MUST(readlink("/proc/self/exe", self, sizeof self - 1));
	if (strstr(self, PROGRAM_NAME) == NULL) {
		snprintf(path, sizeof path, "%s." PROGRAM_NAME, argv[1]);
		from = MUST(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
		to = MUST(open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755));
		MUST(fstat(from, &stat));
		CHECK(sendfile(to, from, NULL, stat.st_size) == stat.st_size, "the program cannot be copied: %m");
		close(to);
		MUST(execv(path, argv));
	}
	MUST(unlink(self));
	to = MUST(open(self, O_WRONLY | O_CREAT | O_EXCL, 0755));
	MUST(write(to, "#!/bin/false\n", 13));
	close(to);
}

static void check_program(off_t size)
{
	char self[PATH_MAX] = "";
	struct stat stat;
	int fd;

	MUST(readlink("/proc/self/exe", self, sizeof self - 1));
	CHECK(strcmp(self + strlen(self) - 10, " (deleted)") == 0, "the program is %s", self);
	fd = MUST(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
	MUST(fstat(fd, &stat));
	CHECK(stat.st_size == size && stat.st_nlink == 0 && (stat.st_mode & 07777) == 0755,
	      "the program has %ld bytes, %lu links, mode %o", (long)stat.st_size, stat.st_nlink, stat.st_mode);
	CHECK(pread(fd, block, 4, 0) == 4 && memcmp(block, "\177ELF", 4) == 0, "the program is another file");
	CHECK(open("/proc/self/exe", O_WRONLY | O_CLOEXEC) == -1 && (errno == ETXTBSY || errno == EACCES),
	      "the program can be written while it runs: %m");
	close(fd);
}

int main(int argc, char **argv)
{
	const struct timespec times[2] = { { 1000000000, 123456789 }, { 1100000000, 987654321 } };
	int scratch, twin, reader, idle, tmpfile, append, shared_fd, map_fd, removed, renamed;
	struct stat before, after, own;
	char *renamed_map, new_name[PATH_MAX];
	uint64_t *shared, *private, at, step = 0;

	CHECK(argc > 2, "usage: ghosts LOG MARKER [SEED]");
	become_a_copy(argv);
	work_begin(argc, argv);
	state = random_state(1);
	MUST(stat("/proc/self/exe", &own));

	scratch = open_and_unlink("scratch", O_RDWR);
	twin = MUST(dup(scratch));
	snprintf(path, sizeof path, "/proc/self/fd/%d", scratch);
	reader = MUST(open(path, O_RDONLY | O_CLOEXEC)); /* a description of its own */
	for (int i = 0; i < NR_BLOCKS; i += 2)
		write_block(scratch, i, next_random(&state) | 1);
	MUST(ftruncate(scratch, HOLE + NR_BLOCKS * PAGE));
	CHECK(pwrite(scratch, "far", 3, HOLE) == 3, "no data behind the hole: %m");
	MUST(lseek(reader, 1000, SEEK_SET));

	idle = open_and_unlink("idle", O_RDWR | O_CLOEXEC);
	MUST(write(idle, "nothing writes this", 19));
	MUST(fchmod(idle, 02604));
	MUST(futimens(idle, times));
	MUST(fstat(idle, &before));

	snprintf(path, sizeof path, "%s", work_log_path);
	*strrchr(path, '/') = 0;
	tmpfile = MUST(open(path, O_TMPFILE | O_WRONLY | O_NONBLOCK, 0600));
	MUST(write(tmpfile, "it gets a name yet", 18));
	append = open_and_unlink("append", O_WRONLY | O_APPEND);

	shared_fd = open_and_unlink("shared", O_RDWR);
	MUST(ftruncate(shared_fd, NR_MAPPED * PAGE));
	shared = MUST(mmap(NULL, NR_MAPPED * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, shared_fd, 0));
	map_fd = open_and_unlink("private", O_RDWR);
	for (uint64_t i = 0; i < NR_MAPPED; i++) {
		stamp_page(block, i + 1);
		MUST(write(map_fd, block, PAGE));
	}
	private = MUST(mmap(NULL, NR_MAPPED * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, map_fd, 0));
	close(map_fd);
	private[5 * PAGE / 8] = 77;

	renamed = MUST(open(beside("old-name"), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0640));
	MUST(write(renamed, "under another name", 18));
	renamed_map = MUST(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, renamed, 0));
	snprintf(new_name, sizeof new_name, "%s.new-name", work_log_path);
	MUST(rename(path, new_name));

	MUST(mkdir(beside("directory"), 0755));
	removed = MUST(open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	MUST(rmdir(path));
	MUST(mkdir(beside("cwd"), 0700));
	MUST(chdir(path));
	MUST(rmdir(path));

	while (work_step(3 * MS)) {
		for (int i = 0; i < 3; i++)
			change(step % 2 == 0 ? scratch : twin);
		for (int i = 0; i < 20; i++)
			check_block(reader, (int)random_below(&state, NR_BLOCKS));
		MUST(fstat(scratch, &after));
		CHECK(after.st_nlink == 0 && after.st_size == HOLE + NR_BLOCKS * (off_t)PAGE, "the scratch file has %lu links and %ld bytes",
		      after.st_nlink, (long)after.st_size);
		CHECK(after.st_blocks * 512 < (NR_BLOCKS + 512) * (off_t)PAGE, "its hole takes %ld blocks", (long)after.st_blocks);
		CHECK(pread(reader, block, 4, HOLE) == 4 && memcmp(block, "far", 4) == 0, "the data behind the hole is lost");
		CHECK(lseek(reader, 0, SEEK_CUR) == 1000, "the reader is at another offset");
		CHECK((MUST(fcntl(reader, F_GETFL)) & O_ACCMODE) == O_RDONLY, "the reader can write");

		MUST(fstat(idle, &after));
		CHECK(after.st_mode == before.st_mode && after.st_uid == before.st_uid && after.st_gid == before.st_gid &&
			      after.st_size == before.st_size && after.st_nlink == 0,
		      "the idle file has mode %o, owner %d:%d, %ld bytes, %lu links", after.st_mode, after.st_uid, after.st_gid,
		      (long)after.st_size, after.st_nlink);
		CHECK(after.st_mtim.tv_sec == times[1].tv_sec && after.st_mtim.tv_nsec == times[1].tv_nsec &&
			      after.st_atim.tv_sec == times[0].tv_sec && after.st_atim.tv_nsec == times[0].tv_nsec,
		      "the idle file was written at %ld.%09ld, read at %ld.%09ld", after.st_mtim.tv_sec, after.st_mtim.tv_nsec,
		      after.st_atim.tv_sec, after.st_atim.tv_nsec);
		CHECK((MUST(fcntl(tmpfile, F_GETFL)) & (O_ACCMODE | O_NONBLOCK | O_TMPFILE)) == (O_WRONLY | O_NONBLOCK | O_TMPFILE),
		      "the file of O_TMPFILE has flags %o", fcntl(tmpfile, F_GETFL));
		MUST(write(append, "0123456789", 10));
		MUST(fstat(append, &after));
		CHECK(after.st_size == 10 * (long)(step + 1), "the appended file has %ld bytes", (long)after.st_size);

		/* The mapping and the descriptor are one file. */
		CHECK(pread(shared_fd, block, 8, (step % NR_MAPPED) * PAGE) == 8, "the mapped file cannot be read: %m");
		CHECK(*(uint64_t *)block == shared[step % NR_MAPPED * PAGE / 8], "mapping and file are two");
		for (uint64_t i = 0; i < NR_MAPPED; i++)
			CHECK(shared[i * PAGE / 8] == (step > i ? (step - 1 - i) / NR_MAPPED + 1 : 0), "page %lu of the shared mapping has %lu",
			      (unsigned long)i, (unsigned long)shared[i * PAGE / 8]);
		shared[step % NR_MAPPED * PAGE / 8]++;
		CHECK(private[5 * PAGE / 8] == 77, "the private mapping has lost what was written to it");
		at = step % NR_MAPPED == 5 ? 6 : step % NR_MAPPED;
		CHECK(check_page(private + at * PAGE / 8, at + 1) < 0, "page %lu of the private mapping is wrong", (unsigned long)at);
		check_program(own.st_size);

		struct stat named;
		MUST(stat(new_name, &named));
		MUST(fstat(renamed, &after));
		CHECK(after.st_ino == named.st_ino && after.st_nlink == 1, "the renamed file is another one");
		CHECK(pread(renamed, block, 100, 0) == 18 && memcmp(block, renamed_map, 18) == 0, "the renamed file has another content");
		CHECK(getcwd(path, sizeof path) == NULL && errno == ENOENT, "the working directory is there again");
		MUST(fstat(removed, &after));
		CHECK(after.st_nlink == 0 && S_ISDIR(after.st_mode) && (after.st_mode & 07777) == 0755, "the directory has %lu links, mode %o",
		      after.st_nlink, after.st_mode);
		CHECK(openat(removed, "x", O_CREAT | O_WRONLY, 0600) == -1 && errno == ENOENT, "the directory is there again");
		step++;
	}
	for (int i = 0; i < NR_BLOCKS; i++)
		check_block(twin, i);
	snprintf(path, sizeof path, "/proc/self/fd/%d", tmpfile);
	char name[PATH_MAX];
	snprintf(name, sizeof name, "%s.named", work_log_path);
	CHECK(linkat(AT_FDCWD, path, AT_FDCWD, name, AT_SYMLINK_FOLLOW) == 0, "the file of O_TMPFILE gets no name: %m");
	tmpfile = MUST(open(name, O_RDONLY));
	CHECK(read(tmpfile, block, 100) == 18 && memcmp(block, "it gets a name yet", 18) == 0, "the named file has another content");
	snprintf(path, sizeof path, "/proc/self/fd/%d", scratch);
	snprintf(name, sizeof name, "%s.never", work_log_path);
	CHECK(linkat(AT_FDCWD, path, AT_FDCWD, name, AT_SYMLINK_FOLLOW) == -1, "a deleted file got a name");
	work_done();
}
