/*
 * The program of a restored process until its own memory is in place. It executes nothing of the workload.
 *
 * It reports that it is up (one byte on descriptor 3, a UNIX socket) and sleeps. Everything else is done to it from
 * outside by remote system calls. Descriptor 3 stays open, so that a remote recvmsg can take descriptors from it.
 */
#include <asm/unistd.h>

static long call(long nr, long a, long b, long c)
{
	long result;

	__asm__ volatile("syscall" : "=a"(result) : "a"(nr), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return result;
}

__attribute__((noreturn)) void _start(void)
{
	char up = 'U'; /* on the stack: the program has no data segment */

	call(__NR_write, 3, (long)&up, 1);
	for (;;)
		call(__NR_pause, 0, 0, 0);
}
