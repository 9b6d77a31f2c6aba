/*
 * Becoming the keeper:
 *
 *   started process ── fork ── intermediate: setsid, cgroups, unshare ── fork ── keeper
 *
 * The second fork enters the new pid and time namespaces. The started process returns 0 once the keeper is listening,
 * or prints one line and returns 1.
 */
#include "keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

/* Carries to the started process one byte 0, or the line that it prints. */
static int status_fd = -1;

void fail(const char *format, ...)
{
	char text[512];
	const char *name = strerrorname_np(errno);
	va_list args;

	va_start(args, format);
	int n = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (n >= 0 && n < (int)sizeof(text) - 32)
		n += snprintf(text + n, sizeof(text) - (size_t)n, ": %s\n", name ? name : "unknown error");
	if (n > (int)sizeof(text) - 1)
		n = sizeof(text) - 1;
	if (write(status_fd >= 0 ? status_fd : STDERR_FILENO, text, (size_t)n) < 0)
		_exit(2);
	_exit(1);
}

void parse_options(int argc, char **argv, struct options *options)
{
	static const struct option table[] = {
		{ "dir", required_argument, NULL, 'd' },
		{ "skeleton", required_argument, NULL, 's' },
		{ "new-pid-namespace", no_argument, NULL, 'p' },
		{ "tied", no_argument, NULL, 't' },
		{ "monotonic-offset-ns", required_argument, NULL, 'm' },
		{ "boottime-offset-ns", required_argument, NULL, 'b' },
		{ "cgroup", required_argument, NULL, 'c' },
		{ "remove-cgroup", required_argument, NULL, 'r' },
		{ NULL, 0, NULL, 0 },
	};
	int option;

	while ((option = getopt_long(argc, argv, "", table, NULL)) != -1) {
		long long *offset = &options->boottime_ns;
		char *end;

		errno = EINVAL;
		switch (option) {
		case 'd':
			options->dir = optarg;
			break;
		case 's':
			options->skeleton = optarg;
			break;
		case 'p':
			options->new_pid_namespace = true;
			break;
		case 't':
			options->tied = true;
			break;
		case 'm':
			offset = &options->monotonic_ns;
			/* fall through */
		case 'b':
			errno = 0;
			*offset = strtoll(optarg, &end, 10);
			if (errno || *end || end == optarg)
				fail("offset %s", optarg);
			options->offsets = true;
			break;
		case 'c':
			if (options->nr_cgroups == MAX_CGROUPS)
				fail("too many --cgroup");
			options->cgroups[options->nr_cgroups++] = optarg;
			break;
		case 'r':
			if (options->nr_remove_cgroups == MAX_CGROUPS)
				fail("too many --remove-cgroup");
			options->remove_cgroups[options->nr_remove_cgroups++] = optarg;
			break;
		default:
			_exit(2); /* getopt has printed the reason */
		}
	}
	errno = EINVAL;
	if (!options->dir || !options->skeleton || optind != argc)
		fail("usage: keeper --dir DIR --skeleton FILE [options]");
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		fail("open %s", path);
	if (write(fd, text, strlen(text)) < 0)
		fail("write %s", path);
	close(fd);
}

/* The kernel wants non-negative nanoseconds: -1 ns is second -1 and 999999999 ns. */
static void split_ns(long long ns, long long *seconds, long *nanoseconds)
{
	*seconds = ns / 1000000000;
	*nanoseconds = (long)(ns % 1000000000);
	if (*nanoseconds < 0) {
		*nanoseconds += 1000000000;
		*seconds -= 1;
	}
}

static void prepare_namespaces(const struct options *options)
{
	if (options->offsets) {
		char text[160];
		long long monotonic, boottime;
		long monotonic_ns, boottime_ns;

		if (unshare(CLONE_NEWTIME) < 0)
			fail("unshare(CLONE_NEWTIME)");
		split_ns(options->monotonic_ns, &monotonic, &monotonic_ns);
		split_ns(options->boottime_ns, &boottime, &boottime_ns);
		snprintf(text, sizeof(text), "monotonic %lld %ld\nboottime %lld %ld\n", monotonic, monotonic_ns,
			 boottime, boottime_ns);
		write_file("/proc/self/timens_offsets", text);
	}
	if (options->new_pid_namespace && unshare(CLONE_NEWPID) < 0)
		fail("unshare(CLONE_NEWPID)");
}

/* The started process: waits for one byte 0 (the keeper is listening) or a line of text. */
__attribute__((noreturn)) static void await_start(int fd)
{
	char text[512];
	ssize_t n;

	do
		n = read(fd, text, sizeof(text));
	while (n < 0 && errno == EINTR);
	if (n == 1 && text[0] == '\0')
		_exit(0);
	if (n <= 0) {
		static const char died[] = "the keeper died while starting\n";

		_exit(write(STDERR_FILENO, died, sizeof(died) - 1) < 0 ? 2 : 1);
	}
	_exit(write(STDERR_FILENO, text, (size_t)n) < 0 ? 2 : 1);
}

void daemonise(const struct options *options)
{
	int pipe_fds[2], null_fd;
	pid_t pid;

	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		fail("pipe2");
	pid = fork();
	if (pid < 0)
		fail("fork");
	if (pid > 0) {
		close(pipe_fds[1]);
		await_start(pipe_fds[0]);
	}
	status_fd = pipe_fds[1];
	close(pipe_fds[0]);
	null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null_fd < 0)
		fail("open /dev/null");
	for (int fd = 0; fd < 3; fd++)
		if (dup2(null_fd, fd) < 0)
			fail("dup2");
	close(null_fd);
	setsid();
	for (int i = 0; i < options->nr_cgroups; i++) {
		char path[4096];

		snprintf(path, sizeof(path), "%s/cgroup.procs", options->cgroups[i]);
		write_file(path, "0"); /* 0: the process that writes */
	}
	prepare_namespaces(options);
	pid = fork();
	if (pid < 0)
		fail("fork into the new namespaces");
	if (pid > 0)
		_exit(0);
}

void report_started(void)
{
	if (write(status_fd, "", 1) != 1)
		_exit(1); /* the launcher is gone */
	close(status_fd);
	status_fd = -1;
}
