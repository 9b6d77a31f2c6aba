/*
 * Many descriptors side by side, each of another open file description, and one at the highest number that the limit
 * allows. The argument behind SEED: how many, up to number N - 1.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "workload.h"

/* fs.nr_open as shipped: no limit goes beyond. */
#define HIGHEST_LIMIT (1024 * 1024)

static void check_offset(int fd, off_t wanted)
{
	off_t offset = MUST(lseek(fd, 0, SEEK_CUR));

	CHECK(offset == wanted, "descriptor %d is at offset %ld instead of %ld", fd, (long)offset, (long)wanted);
}

int main(int argc, char **argv)
{
	struct rlimit limit;
	int number, first, highest;
	off_t step = 0;

	work_begin(argc, argv);
	CHECK(argc > 4, "usage: descriptors LOG MARKER SEED NUMBER");
	number = atoi(argv[4]);
	MUST(getrlimit(RLIMIT_NOFILE, &limit));
	limit.rlim_cur = limit.rlim_max < HIGHEST_LIMIT ? limit.rlim_max : HIGHEST_LIMIT;
	MUST(setrlimit(RLIMIT_NOFILE, &limit));
	first = MUST(open("/etc/passwd", O_RDONLY));
	for (int fd = first + 1; fd < number; fd++)
		CHECK(MUST(open("/etc/passwd", O_RDONLY)) == fd, "the numbers have gaps");
	highest = MUST(dup3(MUST(open("/etc/passwd", O_RDONLY)), (int)limit.rlim_cur - 1, O_CLOEXEC));
	for (int fd = first; fd < number; fd++)
		MUST(lseek(fd, fd, SEEK_SET));

	while (work_step(10 * MS)) {
		for (int fd = first; fd < number; fd++) {
			check_offset(fd, fd + step);
			MUST(lseek(fd, 1, SEEK_CUR));
		}
		check_offset(highest, step++);
		MUST(lseek(highest, step, SEEK_SET));
		check_offset(number, step); /* its twin */
		CHECK(MUST(fcntl(highest, F_GETFD)) == FD_CLOEXEC, "the highest descriptor is not close-on-exec");
		CHECK(MUST(fcntl(number, F_GETFD)) == 0, "descriptor %d is close-on-exec", number);
		CHECK(fcntl(number + 1, F_GETFD) == -1, "there is a descriptor %d", number + 1);
	}
	work_done();
}
