/*
 * The heir of a process: a child that shares its descriptor table (CLONE_FILES) and nothing else. It sleeps while the
 * process lives. When the process is killed, the heir owns the table and every file in it.
 *
 * read(2) of UFFD_EVENT_FORK installs the child's userfaultfd in the table of the reader. Until the reader has passed
 * it on, kill -9 of the reader would close it, and the child's missing pages would read as zeros.
 *
 *   armed (heir_arm)         the heir closes all but userfaultfds, so that peers and parents of the dead process notice
 *                            at once. It keeps those until it is killed or its witness, a socket, hangs up
 *   not armed, or none left  it ends with the process
 *
 * A signal arms it. The signal carries the number of the witness's descriptor and stays pending until the heir looks
 * for it.
 *
 * The heir does not need the memory of the process and drops its copy. So the process need not copy every page that it
 * writes from then on. The code that runs after that has no data, no libc and no thread-local storage, only the code,
 * its constants and the stack.
 */
#include "common.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef __x86_64__
#error "raw_syscall is written for x86-64"
#endif

/* Both are blocked in the heir, which only waits for them. */
#define DEATH_SIGNAL SIGUSR1
#define ARM_SIGNAL SIGUSR2
/* Stack that is kept around the heir's frame: far more than the calls below use. */
#define STACK_BELOW (8 * PF_PAGE)
#define STACK_ABOVE (2 * PF_PAGE)
#define USER_END 0x7ffffffff000ul

#define SIGNAL_BIT(signal_number) (1ul << ((signal_number)-1))
#define KERNEL_SIGSET_BYTES 8

static inline __attribute__((always_inline)) long raw_syscall(long number, long a, long b, long c, long d)
{
	register long r10 __asm__("r10") = d;
	long result;

	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return result;
}

struct dirent64 {
	uint64_t ino;
	int64_t off;
	uint16_t length;
	uint8_t type;
	char name[];
};

static inline __attribute__((always_inline)) bool is_userfaultfd(int directory, const char *name)
{
	static const char wanted[] = "anon_inode:[userfaultfd]";
	char target[32];
	long n = raw_syscall(SYS_readlinkat, directory, (long)name, (long)target, sizeof(target));

	if (n != sizeof(wanted) - 1)
		return false;
	for (long i = 0; i < n; i++)
		if (target[i] != wanted[i])
			return false;
	return true;
}

/* Closes all but userfaultfds and the witness. Returns whether there is any userfaultfd. */
static inline __attribute__((always_inline)) bool keep_userfaultfds(int witness)
{
	static const char path[] = "/proc/self/fd";
	int directory = (int)raw_syscall(SYS_openat, AT_FDCWD, (long)path, O_RDONLY | O_DIRECTORY, 0);
	char entries[2048] __attribute__((aligned(8)));
	bool any = false;
	long n;

	if (directory < 0)
		return true; /* without /proc it is unknown: keeping too much is better than losing one */
	while ((n = raw_syscall(SYS_getdents64, directory, (long)entries, sizeof(entries), 0)) > 0) {
		for (long at = 0; at < n;) {
			struct dirent64 *entry = (struct dirent64 *)(entries + at);
			int fd = 0;

			at += entry->length;
			if (entry->name[0] == '.')
				continue;
			for (const char *digit = entry->name; *digit; digit++)
				fd = 10 * fd + (*digit - '0');
			if (is_userfaultfd(directory, entry->name))
				any = true;
			else if (fd != directory && fd != witness)
				raw_syscall(SYS_close, fd, 0, 0, 0);
		}
	}
	raw_syscall(SYS_close, directory, 0, 0, 0);
	return any;
}

__attribute__((noreturn, noinline, no_stack_protector)) static void be_heir(pid_t parent)
{
	static const char name[] = "pf-heir";
	uint64_t death = SIGNAL_BIT(DEATH_SIGNAL), arm = SIGNAL_BIT(ARM_SIGNAL);
	uintptr_t here = (uintptr_t)__builtin_frame_address(0) & ~(PF_PAGE - 1);
	struct timespec at_once = { 0 };
	struct pollfd hangup = { 0 };
	siginfo_t armed;

	/* A signal to the group or the session of the process must not reach its heir as well. */
	raw_syscall(SYS_setsid, 0, 0, 0, 0);
	raw_syscall(SYS_prctl, PR_SET_NAME, (long)name, 0, 0);
	/* Sent when the thread that made us ends. If the process has more threads, another one becomes our parent. */
	raw_syscall(SYS_prctl, PR_SET_PDEATHSIG, DEATH_SIGNAL, 0, 0);
	/* Holes answer ENOMEM and mappings of devices EINVAL. Memory that stays costs only its copies. */
	raw_syscall(SYS_madvise, 0, (long)(here - STACK_BELOW), MADV_DONTNEED, 0);
	raw_syscall(SYS_madvise, (long)(here + STACK_ABOVE), (long)(USER_END - here - STACK_ABOVE), MADV_DONTNEED, 0);

	while (raw_syscall(SYS_getppid, 0, 0, 0, 0) == parent)
		raw_syscall(SYS_rt_sigtimedwait, (long)&death, 0, 0, KERNEL_SIGSET_BYTES);
	/* The table is ours: a process gives up its files before it tells its children. */
	if (raw_syscall(SYS_rt_sigtimedwait, (long)&arm, (long)&armed, (long)&at_once, KERNEL_SIGSET_BYTES) == ARM_SIGNAL) {
		hangup.fd = armed.si_value.sival_int;
		if (keep_userfaultfds(hangup.fd))
			while (raw_syscall(SYS_poll, (long)&hangup, 1, -1, 0) <= 0)
				;
	}
	for (;;)
		raw_syscall(SYS_exit_group, 0, 0, 0, 0);
}

/* Pid and pidfd of a new heir, not armed */
static napi_value heir_start(napi_env env, napi_callback_info info)
{
	napi_value result;
	uint64_t all = ~0ul, before;
	int pidfd = -1;
	pid_t parent = getpid();

	/* None of our handlers may run in the heir. Not sigprocmask, which spares two signals for the C library. */
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, KERNEL_SIGSET_BYTES);
	/* No signal at its exit: this process does not wait for children in general. */
	long pid = syscall(SYS_clone, CLONE_FILES | CLONE_PIDFD, NULL, &pidfd, NULL, NULL);
	if (pid == 0)
		be_heir(parent);
	int err = errno;
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, KERNEL_SIGSET_BYTES);
	if (pid < 0)
		return pf_throw(env, "clone(CLONE_FILES)", err, 0);
	if (napi_create_object(env, &result) != napi_ok)
		return NULL;
	pf_set_number(env, result, "pid", (double)pid);
	pf_set_number(env, result, "pidfd", pidfd);
	return result;
}

/* (pidfd, witness) */
static napi_value heir_arm(napi_env env, napi_callback_info info)
{
	siginfo_t armed = { .si_signo = ARM_SIGNAL, .si_code = SI_QUEUE };
	napi_value argv[2];
	int pidfd, witness;

	if (!pf_args(env, info, 2, argv) || !pf_int(env, argv[0], &pidfd) || !pf_int(env, argv[1], &witness))
		return NULL;
	armed.si_value.sival_int = witness;
	if (syscall(SYS_pidfd_send_signal, pidfd, ARM_SIGNAL, &armed, 0) < 0)
		return pf_throw(env, "pidfd_send_signal", errno, 0);
	return pf_undefined(env);
}

void init_heir(napi_env env, napi_value exports)
{
	napi_value heir;

	napi_create_object(env, &heir);
	pf_set(env, exports, "heir", heir);
	pf_export(env, heir, "start", heir_start);
	pf_export(env, heir, "arm", heir_arm);
}
