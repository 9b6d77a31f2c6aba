/*
 * When it is told to, it has a child, which lives for some seconds: in the middle of whatever is being done with the
 * parent. Ends when the child has, which it must be able to wait for. Memory enough for a round that takes a moment.
 */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "workload.h"

#define NR_PAGES 65536

int main(int argc, char **argv)
{
	uint64_t stamp = 0;
	char *memory;
	int status;
	pid_t child;

	work_begin(argc, argv);
	memory = MUST(mmap(NULL, NR_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (size_t page = 0; page < NR_PAGES; page++)
		stamp_page(memory + page * PAGE, ++stamp);
	while (work_step(MS))
		;
	child = MUST(fork());
	if (child == 0) {
		sleep(4);
		_exit(7);
	}
	MUST(waitpid(child, &status, 0));
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7, "the child ended with %#x", status);
	work_done();
}
