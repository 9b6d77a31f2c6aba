/*
 * Descriptors: offsets, flags, close-on-exec, descriptors that share one offset and descriptors that do not, directories,
 * memory devices, and pipes whose two ends are both here, with what lies in them: apart, or in one descriptor.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>
#include <dirent.h>

#include "workload.h"

#define HIGH_FD 200

static char path[PATH_MAX];

static int open_beside(const char *suffix, int flags)
{
	snprintf(path, sizeof path, "%s.%s", work_log_path, suffix);
	return MUST(open(path, flags, 0640));
}

static void check_flags(int fd, const char *what, int wanted, bool cloexec)
{
	int flags = MUST(fcntl(fd, F_GETFL)), fd_flags = MUST(fcntl(fd, F_GETFD));

	CHECK((flags & (O_ACCMODE | O_APPEND | O_NONBLOCK | O_DIRECTORY)) == wanted, "%s has flags %o instead of %o", what,
	      flags, wanted);
	CHECK(fd_flags == (cloexec ? FD_CLOEXEC : 0), "%s has descriptor flags %d", what, fd_flags);
}

static void check_offset(int fd, const char *what, off_t wanted)
{
	off_t offset = MUST(lseek(fd, 0, SEEK_CUR));

	CHECK(offset == wanted, "%s is at offset %ld instead of %ld", what, (long)offset, (long)wanted);
}

static long count_descriptors(void)
{
	DIR *directory = opendir("/proc/self/fd");
	long count = 0;

	CHECK(directory != NULL, "/proc/self/fd cannot be read: %m");
	while (readdir(directory) != NULL)
		count++;
	closedir(directory);
	return count;
}

int main(int argc, char **argv)
{
	int plain, twin, other, high, append, directory, null, zero, full, random, urandom, own, empty[2], half[2], full_pipe[2], ends[2], both;
	long descriptors, queued, step = 0;
	size_t written = 0;
	struct stat before, after;
	char buffer[4096], wanted[4096], own_pid[32];
	unsigned char next_in = 0, next_out = 0;

	work_begin(argc, argv);
	plain = open_beside("plain", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC);
	for (int i = 0; i < 4096; i++)
		buffer[i] = (char)(i * 7);
	MUST(write(plain, buffer, sizeof buffer));
	MUST(lseek(plain, 100, SEEK_SET));
	twin = MUST(dup(plain)); /* shares the offset, is not close-on-exec */
	other = open_beside("plain", O_RDONLY); /* an offset of its own */
	MUST(lseek(other, 2000, SEEK_SET));
	high = MUST(fcntl(plain, F_DUPFD_CLOEXEC, HIGH_FD));
	append = open_beside("append", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_NONBLOCK);
	directory = MUST(open("/etc", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	null = MUST(open("/dev/null", O_RDWR));
	zero = MUST(open("/dev/zero", O_RDONLY));
	full = MUST(open("/dev/full", O_WRONLY));
	random = MUST(open("/dev/random", O_RDONLY | O_NONBLOCK));
	urandom = MUST(open("/dev/urandom", O_RDONLY | O_CLOEXEC));
	MUST(pipe2(empty, O_CLOEXEC | O_NONBLOCK));
	MUST(pipe(half));
	MUST(fcntl(half[1], F_SETPIPE_SZ, 1 << 17));
	MUST(pipe2(full_pipe, O_NONBLOCK));
	memset(buffer, 'f', sizeof buffer);
	while (write(full_pipe[1], buffer, sizeof buffer) > 0)
		written += sizeof buffer;
	CHECK(errno == EAGAIN && written > 0, "a pipe cannot be filled: %m");
	for (int i = 0; i < 10000; i++, next_in++)
		MUST(write(half[1], &next_in, 1));
	/* Opened anew for both directions: the only descriptor of its pipe. */
	MUST(pipe(ends));
	snprintf(path, sizeof path, "/proc/self/fd/%d", ends[0]);
	both = MUST(open(path, O_RDWR | O_CLOEXEC));
	close(ends[0]);
	close(ends[1]);
	MUST(write(both, &step, sizeof step));
	MUST(fstat(plain, &before));
	own = MUST(open("/proc/self/status", O_RDONLY | O_CLOEXEC));
	snprintf(own_pid, sizeof own_pid, "\nPid:\t%d\n", getpid());
	descriptors = count_descriptors();

	while (work_step(3 * MS)) {
		off_t offset = 100 + (step * 13) % 1000, next = 100 + ((step + 1) * 13) % 1000;
		char byte;

		check_flags(plain, "the plain file", O_RDWR, true);
		check_flags(twin, "its twin", O_RDWR, false);
		check_flags(high, "its high twin", O_RDWR, true);
		check_flags(other, "the other opening", O_RDONLY, false);
		check_flags(append, "the appended file", O_WRONLY | O_APPEND | O_NONBLOCK, false);
		check_flags(directory, "the directory", O_RDONLY | O_DIRECTORY, true);
		check_flags(null, "/dev/null", O_RDWR, false);
		check_flags(urandom, "/dev/urandom", O_RDONLY, true);
		check_flags(random, "/dev/random", O_RDONLY | O_NONBLOCK, false);
		check_flags(empty[0], "the empty pipe", O_RDONLY | O_NONBLOCK, true);
		check_flags(half[1], "the half full pipe", O_WRONLY, false);
		check_flags(full_pipe[1], "the full pipe", O_WRONLY | O_NONBLOCK, false);

		check_offset(plain, "the plain file", offset);
		check_offset(other, "the other opening", 2000);
		MUST(read(twin, &byte, 1));
		CHECK(byte == (char)(offset * 7), "the plain file has another content");
		check_offset(plain, "the plain file after its twin was read", offset + 1);
		MUST(lseek(high, next, SEEK_SET));
		MUST(fstat(plain, &after));
		CHECK(before.st_ino == after.st_ino && before.st_dev == after.st_dev, "the plain file is another file");

		MUST(lseek(append, 0, SEEK_SET));
		MUST(write(append, "0123456789", 10));
		MUST(fstat(append, &after));
		CHECK(after.st_size == 10 * (step + 1), "the appended file has %ld bytes in step %ld", (long)after.st_size, step);

		CHECK(faccessat(directory, "passwd", F_OK, 0) == 0, "the directory is not /etc any more: %m");
		CHECK(write(null, "x", 1) == 1 && read(null, buffer, 1) == 0, "/dev/null is something else");
		memset(buffer, 1, 16);
		CHECK(read(zero, buffer, 16) == 16 && memcmp(buffer, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16) == 0,
		      "/dev/zero is something else");
		CHECK(write(full, "x", 1) == -1 && errno == ENOSPC, "/dev/full is something else");
		CHECK(read(urandom, buffer, 16) == 16 && read(random, buffer, 16) == 16, "no random numbers");

		buffer[MUST(pread(own, buffer, sizeof buffer - 1, 0))] = 0;
		CHECK(strstr(buffer, own_pid) != NULL, "/proc/self/status is that of another process");

		CHECK(read(empty[0], &byte, 1) == -1 && errno == EAGAIN, "an empty pipe is not empty");
		CHECK(write(full_pipe[1], "x", 1) == -1 && errno == EAGAIN, "a full pipe is not full");
		CHECK(fcntl(half[0], F_GETPIPE_SZ) == 1 << 17, "a pipe has another size");
		check_flags(both, "the pipe in one descriptor", O_RDWR, true);
		queued = step + 1;
		MUST(write(both, &queued, sizeof queued));
		CHECK(read(both, &queued, sizeof queued) == sizeof queued && queued == step,
		      "%ld came out of the pipe in one descriptor", queued);
		for (int i = 0; i < 50; i++, next_in++, next_out++) {
			MUST(write(half[1], &next_in, 1));
			MUST(read(half[0], &byte, 1));
			CHECK((unsigned char)byte == next_out, "byte %d came out of a pipe instead of %d", (unsigned char)byte,
			      next_out);
		}
		CHECK(count_descriptors() == descriptors, "there are %ld descriptors, not %ld", count_descriptors(), descriptors);
		step++;
	}
	memset(wanted, 'f', sizeof wanted);
	for (size_t got = 0; got < written; got += sizeof buffer) {
		CHECK(read(full_pipe[0], buffer, sizeof buffer) == sizeof buffer, "the full pipe has lost something");
		CHECK(memcmp(buffer, wanted, sizeof buffer) == 0, "the full pipe has another content");
	}
	CHECK(read(full_pipe[0], buffer, 1) == -1 && errno == EAGAIN, "the full pipe has gained something");
	close(half[1]);
	for (int i = 0; i < 10000; i++, next_out++)
		CHECK(read(half[0], buffer, 1) == 1 && (unsigned char)buffer[0] == next_out, "byte %d of a pipe is wrong", i);
	CHECK(read(half[0], buffer, 1) == 0, "a pipe that nobody can write to does not end");
	work_done();
}
