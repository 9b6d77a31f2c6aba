/*
 * File locks of each kind, on files in a directory that is given behind SEED: flock(2), of ranges by the process and by open
 * file descriptions, shared and exclusive. "shared" as a second argument: only those that two may have at once.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "workload.h"

static const char *directory;
static bool shared;

static int open_in(const char *name, int flags)
{
	char path[PATH_MAX];

	snprintf(path, sizeof path, "%s/%s", directory, name);
	return MUST(open(path, flags | O_CLOEXEC));
}

static void lock(int fd, int command, int type, off_t start, off_t length)
{
	struct flock range = { .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length };

	MUST(fcntl(fd, command, &range));
}

/* What stands in the way of another description of the file that wants to write there. */
static void check_range(int fd, const char *what, int type, off_t start, off_t length, bool own)
{
	struct flock range = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start ? start - 1 : 0, .l_len = 0 };

	MUST(fcntl(fd, F_OFD_GETLK, &range));
	CHECK(range.l_type == type && range.l_start == start && range.l_len == length, "%s: lock of type %d at %ld +%ld", what,
	      range.l_type, (long)range.l_start, (long)range.l_len);
	/* 0: a process of another pid namespace. On a shared file system the original has its lock until it ends. */
	if (own && shared && range.l_pid == 0)
		return;
	CHECK(range.l_pid == (own ? getpid() : -1), "%s belongs to %d", what, range.l_pid);
}

static void check_flock(int fd, const char *what, bool exclusive)
{
	CHECK(flock(fd, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK, "%s: nothing is locked", what);
	if (exclusive)
		CHECK(flock(fd, LOCK_SH | LOCK_NB) == -1 && errno == EWOULDBLOCK, "%s: the lock is not exclusive", what);
	else {
		MUST(flock(fd, LOCK_SH | LOCK_NB));
		MUST(flock(fd, LOCK_UN));
	}
}

int main(int argc, char **argv)
{
	int whole, whole_shared, posix, posix_shared, ofd, ofd_shared, other[6];

	work_begin(argc, argv);
	CHECK(argc > 4, "usage: locks LOG MARKER SEED DIRECTORY [shared]");
	directory = argv[4];
	shared = argc > 5;
	/* Not closed later on, for that would drop the locks of the process. */
	const char *names[6] = { "flock", "flock-shared", "posix", "posix-shared", "ofd", "ofd-shared" };
	for (int i = 0; i < 6; i++)
		other[i] = open_in(names[i], O_RDWR);
	whole = open_in("flock", O_RDONLY);
	whole_shared = open_in("flock-shared", O_RDWR);
	posix = open_in("posix", O_RDWR);
	posix_shared = open_in("posix-shared", O_RDONLY);
	ofd = open_in("ofd", O_RDWR);
	ofd_shared = open_in("ofd-shared", O_RDONLY);
	if (!shared) {
		MUST(flock(whole, LOCK_EX));
		lock(posix, F_SETLK, F_WRLCK, 100, 50);
		lock(ofd, F_OFD_SETLK, F_WRLCK, 0, 0);
	}
	MUST(flock(whole_shared, LOCK_SH));
	lock(posix_shared, F_SETLK, F_RDLCK, 5000000000, 0);
	lock(ofd_shared, F_OFD_SETLK, F_RDLCK, 7, 1);
	MUST(dup2(ofd_shared, 100)); /* a second descriptor of one description */

	while (work_step(3 * MS)) {
		if (!shared) {
			check_flock(other[0], "flock", true);
			check_range(other[2], "the range of the process", F_WRLCK, 100, 50, true);
			check_range(other[4], "the range of the description", F_WRLCK, 0, 0, false);
		}
		check_flock(other[1], "shared flock", false);
		check_range(other[3], "the shared range of the process", F_RDLCK, 5000000000, 0, true);
		check_range(other[5], "the shared range of the description", F_RDLCK, 7, 1, false);
	}
	/* It belongs to the description: the second descriptor keeps it. */
	MUST(close(ofd_shared));
	check_range(other[5], "the shared range of the description", F_RDLCK, 7, 1, false);
	MUST(close(100));
	work_done();
}
