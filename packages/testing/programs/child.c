/*
 * A process for tests: connects to the UNIX socket argv[1], makes an area of argv[2] pages and a userfaultfd, sends
 * both, and then does one thing per message. A message is three u64 (operation, address, argument), the answer is one
 * u64. Operations block as they would in any program until the fault or event is handled.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static struct {
	uint8_t *from;
	size_t length;
} move;

static void *mover(void *set)
{
	int number;

	sigwait(set, &number);
	mremap(move.from, move.length, move.length, MREMAP_MAYMOVE | MREMAP_FIXED, move.from + move.length);
	return NULL;
}

static uint64_t start_mover(uint8_t *from, size_t length)
{
	static sigset_t set;
	pthread_t thread;

	move.from = from;
	move.length = length;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	return (uint64_t)pthread_create(&thread, NULL, mover, &set);
}

static uint64_t perform(char operation, uint64_t address, uint64_t argument)
{
	uint8_t *at = (uint8_t *)(uintptr_t)address;
	int status = 0;
	pid_t pid;

	switch (operation) {
	case 'r': /* read a byte */
		return *(volatile uint8_t *)at;
	case 'w': /* write a byte */
		*(volatile uint8_t *)at = (uint8_t)argument;
		return 0;
	case 'd': /* discard */
		return (uint64_t)madvise(at, argument, MADV_DONTNEED);
	case 'u':
		return (uint64_t)munmap(at, argument);
	case 'm': /* move the area elsewhere */
		return (uint64_t)(uintptr_t)mremap(at, argument, argument, MREMAP_MAYMOVE | MREMAP_FIXED,
						   mmap(NULL, argument, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	case 't': /* another thread, which moves this to right behind itself when SIGUSR1 comes */
		return start_mover(at, argument);
	case 'p': /* read-only */
		return (uint64_t)mprotect(at, argument, PROT_READ);
	case 'a': /* another area */
		return (uint64_t)(uintptr_t)mmap(NULL, argument, PROT_READ | PROT_WRITE,
						 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	case 'f': /* a forked child reads a byte and exits with it */
		pid = fork();
		if (pid == 0)
			_exit(*(volatile uint8_t *)at);
		waitpid(pid, &status, 0);
		return (uint64_t)WEXITSTATUS(status);
	default:
		return ~0ull;
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (argc < 3)
		return 2;
	strncpy(address.sun_path, argv[1], sizeof(address.sun_path) - 1);
	if (connect(sock, (struct sockaddr *)&address, sizeof(address)) < 0)
		return 3;
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	uint64_t area = perform('a', 0, strtoul(argv[2], NULL, 10) * 4096), message[3];
	struct iovec iov = { .iov_base = &area, .iov_len = sizeof(area) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes,
			      .msg_controllen = sizeof(control.bytes) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &uffd, sizeof(uffd));
	if (uffd < 0 || sendmsg(sock, &msg, 0) < 0)
		return 4;
	close(uffd);
	while (recv(sock, message, sizeof(message), 0) == sizeof(message)) {
		uint64_t answer = perform((char)message[0], message[1], message[2]);

		if (send(sock, &answer, sizeof(answer), 0) < 0)
			return 5;
	}
	return 0;
}
