/*
 * Who the process is: ids, groups, capabilities, limits, names, directories, scheduling. All of it is read at the start
 * and must be the same ever after, from within and in /proc.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <grp.h>
#include <unistd.h>

#include "workload.h"

#define NR_THREADS 3

static atomic_bool stopping;
static pid_t tids[NR_THREADS];

static size_t read_file(const char *path, char *text, size_t bytes)
{
	int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
	size_t length = 0;

	for (;;) {
		ssize_t got = MUST(read(fd, text + length, bytes - 1 - length));

		if (got == 0)
			break;
		length += got;
	}
	close(fd);
	text[length] = 0;
	return length;
}

/* One snapshot of everything, as text, so that a difference can be shown. */
static char *add_line(char *at, const char *name, const char *value)
{
	return at + sprintf(at, "%s %s\n", name, value);
}

static char *add_link(char *at, const char *name)
{
	char path[100], target[4096];
	ssize_t length;

	snprintf(path, sizeof path, "/proc/self/%s", name);
	length = MUST(readlink(path, target, sizeof target - 1));
	target[length] = 0;
	return add_line(at, name, target);
}

/* Command line, environment and auxiliary vector as /proc shows them: a hash is enough. */
static char *add_hash(char *at, const char *name)
{
	static char content[65536];
	uint64_t hash = 14695981039346656037ull;
	char path[100];
	size_t length;

	snprintf(path, sizeof path, "/proc/self/%s", name);
	length = read_file(path, content, sizeof content);
	for (size_t i = 0; i < length; i++)
		hash = (hash ^ (unsigned char)content[i]) * 1099511628211ull;
	return at + sprintf(at, "%s %zu bytes, %lx\n", name, length, hash);
}

static char *add_status(char *at)
{
	static const char *const wanted[] = { "Name:", "Umask:", "Tgid:", "Pid:", "Uid:", "Gid:", "Groups:", "NStgid:", "NSpgid:",
					      "NSsid:", "SigBlk:", "SigIgn:", "SigCgt:", "CapInh:", "CapPrm:", "CapEff:",
					      "CapBnd:", "CapAmb:", "NoNewPrivs:", "Seccomp:", "THP_enabled:", "Threads:",
					      "Cpus_allowed:" };
	static char text[16384];

	read_file("/proc/self/status", text, sizeof text);
	for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n"))
		for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
			if (strncmp(line, wanted[i], strlen(wanted[i])) == 0)
				at = add_line(at, "status", line);
	return at;
}

/* Fields of /proc/self/stat that do not change by themselves (proc_pid_stat(5)), counted from 1. */
static char *add_stat(char *at)
{
	static const int wanted[] = { 5, 6, 7, 18, 19, 20, 26, 27, 28, 41, 45, 46, 48, 49, 50, 51 };
	static char text[4096];
	int field = 2;
	size_t next = 0;

	read_file("/proc/self/stat", text, sizeof text);
	for (char *word = strtok(strrchr(text, ')'), " "); word != NULL; word = strtok(NULL, " "), field++)
		if (next < sizeof wanted / sizeof *wanted && field == wanted[next]) {
			at += sprintf(at, "stat field %d %s\n", field, word);
			next++;
		}
	return at;
}

static void take_snapshot(char *at)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2];
	uid_t ids[6];
	char text[4096];
	struct sched_param parameter;

	MUST(getresuid(&ids[0], &ids[1], &ids[2]));
	MUST(getresgid(&ids[3], &ids[4], &ids[5]));
	at += sprintf(at, "ids %d %d %d, %d %d %d, fs %d %d\n", ids[0], ids[1], ids[2], ids[3], ids[4], ids[5], setfsuid(-1),
		      setfsgid(-1));
	at += sprintf(at, "pid %d, tid %d, parent's, session %d, group %d\n", getpid(), gettid(), getsid(0), getpgrp());
	MUST(syscall(SYS_capget, &header, data));
	for (int i = 0; i < 2; i++)
		at += sprintf(at, "capabilities %x %x %x\n", data[i].effective, data[i].permitted, data[i].inheritable);
	at += sprintf(at, "securebits %d, dumpable %d, no_new_privs %d, keepcaps %d, subreaper ", prctl(PR_GET_SECUREBITS),
		      prctl(PR_GET_DUMPABLE), prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), prctl(PR_GET_KEEPCAPS));
	int subreaper = -1, death = -1;

	MUST(prctl(PR_GET_CHILD_SUBREAPER, &subreaper));
	MUST(prctl(PR_GET_PDEATHSIG, &death));
	at += sprintf(at, "%d, death signal %d\n", subreaper, death);
	for (int resource = 0; resource < RLIM_NLIMITS; resource++) {
		struct rlimit limit;

		MUST(getrlimit(resource, &limit));
		at += sprintf(at, "limit %d: %lx %lx\n", resource, limit.rlim_cur, limit.rlim_max);
	}
	mode_t mask = umask(0);
	umask(mask);
	at += sprintf(at, "umask %o, nice %d\n", mask, getpriority(PRIO_PROCESS, 0));
	MUST(sched_getparam(0, &parameter));
	at += sprintf(at, "policy %d, priority %d, personality %x\n", sched_getscheduler(0), parameter.sched_priority,
		      (unsigned int)syscall(SYS_personality, 0xffffffff));
	at = add_line(at, "directory", getcwd(text, sizeof text));
	at += sprintf(at, "I/O priority %ld, timer slack %d, machine checks %d, merging %d, registrations %lx\n",
		      syscall(SYS_ioprio_get, 1, 0), prctl(PR_GET_TIMERSLACK), prctl(PR_MCE_KILL_GET, 0, 0, 0, 0),
		      prctl(68, 0, 0, 0, 0), syscall(SYS_membarrier, 1 << 9, 0, 0));
	stack_t stack;
	MUST(sigaltstack(NULL, &stack));
	at += sprintf(at, "stack %p, %x\n", stack.ss_sp, stack.ss_flags);
	read_file("/proc/self/oom_score_adj", text, sizeof text);
	at = add_line(at, "oom_score_adj", text);
	read_file("/proc/self/coredump_filter", text, sizeof text);
	at = add_line(at, "coredump_filter", text);
	at = add_link(at, "exe");
	at = add_link(at, "cwd");
	at = add_link(at, "root");
	at = add_hash(at, "cmdline");
	at = add_hash(at, "environ");
	at = add_hash(at, "auxv");
	at = add_status(at);
	add_stat(at);
}

static void compare(const char *before, const char *after)
{
	while (*before != 0 && *after != 0) {
		size_t one = strcspn(before, "\n"), other = strcspn(after, "\n");

		CHECK(one == other && memcmp(before, after, one) == 0, "was \"%.*s\", is \"%.*s\"", (int)one, before, (int)other,
		      after);
		before += one + 1;
		after += other + 1;
	}
	CHECK(*before == *after, "something is missing at the end");
}

/* mlockall(2) for what is mapped from now on; root's is not filled before it is touched. */
static void check_future_locks(void)
{
	unsigned char resident;
	long before, after;
	char text[4096], *page;

	read_file("/proc/self/status", text, sizeof text);
	CHECK(sscanf(strstr(text, "VmLck:"), "VmLck: %ld", &before) == 1, "no VmLck");
	page = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	read_file("/proc/self/status", text, sizeof text);
	CHECK(sscanf(strstr(text, "VmLck:"), "VmLck: %ld", &after) == 1, "no VmLck");
	MUST(mincore(page, 4096, &resident));
	CHECK(after == before + 4, "new memory is not locked: %ld kB were, %ld kB are", before, after);
	CHECK((resident & 1) == (geteuid() != 0), "new memory is %s", resident & 1 ? "filled" : "not filled");
	MUST(munmap(page, 4096));
}

static void *be_somebody(void *argument)
{
	int number = (int)(uintptr_t)argument;
	char name[16], now[16];
	int nice = number + 4;

	snprintf(name, sizeof name, "worker %d", number);
	MUST(prctl(PR_SET_NAME, name));
	MUST(setpriority(PRIO_PROCESS, gettid(), nice));
	tids[number] = gettid();
	while (!stopping) {
		MUST(prctl(PR_GET_NAME, now));
		CHECK(strcmp(name, now) == 0, "thread %d is called \"%s\"", number, now);
		CHECK(gettid() == tids[number], "the tid of thread %d was %d, is %d", number, tids[number], gettid());
		CHECK(getpriority(PRIO_PROCESS, gettid()) == nice, "the nice value of thread %d is %d", number,
		      getpriority(PRIO_PROCESS, gettid()));
		pause_ns(2 * MS);
	}
	return NULL;
}

static void write_file(const char *path, const char *text)
{
	int fd = MUST(open(path, O_WRONLY | O_CLOEXEC));

	MUST(write(fd, text, strlen(text)));
	close(fd);
}

/* Nothing here may be the default: it would come through a move that forgets it. */
static void set_attributes(void)
{
	static char stack[65536];
	stack_t autodisarmed = { .ss_sp = stack, .ss_size = sizeof stack, .ss_flags = (int)(1u << 31) };
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(work_seed % sysconf(_SC_NPROCESSORS_ONLN), &one);
	MUST(sched_setaffinity(0, sizeof one, &one));
	MUST(syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6));
	MUST(prctl(PR_SET_TIMERSLACK, 77777));
	MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));
	prctl(67, 1, 0, 0, 0); /* PR_SET_MEMORY_MERGE: not in every kernel */
	MUST(syscall(SYS_membarrier, 1 << 4, 0, 0));
	MUST(sigaltstack(&autodisarmed, NULL));
	write_file("/proc/self/coredump_filter", "0x11");
}

int main(int argc, char **argv)
{
	static char before[65536], after[65536];
	pthread_t threads[NR_THREADS];
	struct rlimit limit;
	int adjustment;

	work_begin(argc, argv);
	MUST(prctl(PR_SET_NAME, "wo\xc3\xb6 I (x) \n y\xc3")); /* cut within a character */
	umask(027);
	MUST(chdir("/usr/lib"));
	MUST(getrlimit(RLIMIT_NOFILE, &limit));
	limit.rlim_cur = limit.rlim_max = limit.rlim_max > 333 ? 333 : limit.rlim_max;
	MUST(setrlimit(RLIMIT_NOFILE, &limit));
	MUST(getrlimit(RLIMIT_CORE, &limit));
	limit.rlim_cur = 0;
	MUST(setrlimit(RLIMIT_CORE, &limit));
	MUST(setpriority(PRIO_PROCESS, 0, 3));
	set_attributes();
	adjustment = MUST(open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));
	MUST(write(adjustment, "321", 3));
	close(adjustment);
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
	if (geteuid() == 0) {
		gid_t groups[] = { 5, 77, 1000, 123456 };
		struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
		struct __user_cap_data_struct data[2];

		MUST(setgroups(4, groups));
		MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT));
		MUST(syscall(SYS_capget, &header, data));
		data[0].permitted &= ~(1u << CAP_SYS_BOOT | 1u << CAP_SYS_TIME);
		data[0].effective = data[0].permitted & ~(1u << CAP_NET_RAW);
		data[0].inheritable = 1u << CAP_CHOWN;
		MUST(syscall(SYS_capset, &header, data));
		MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0));
		MUST(setresgid(0, 42, 0));
	} else
		MUST(prctl(PR_SET_DUMPABLE, 1));
	if (work_seed % 2 == 1)
		MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	for (uintptr_t i = 0; i < NR_THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, be_somebody, (void *)i) == 0, "no thread");
	for (int i = 0; i < NR_THREADS; i++)
		while (*(volatile pid_t *)&tids[i] == 0)
			pause_ns(MS);
	MUST(mlockall(MCL_FUTURE | (geteuid() == 0 ? MCL_ONFAULT : 0)));
	take_snapshot(before);
	while (work_step(3 * MS)) {
		check_future_locks();
		take_snapshot(after);
		compare(before, after);
	}
	stopping = true;
	for (int i = 0; i < NR_THREADS; i++)
		pthread_join(threads[i], NULL);
	work_done();
}
