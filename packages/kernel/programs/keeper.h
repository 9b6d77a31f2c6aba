/*
 * The parts of the keeper: keeper.c (its life and its requests), keeper-start.c (becoming one), keeper-tree.c (its
 * processes).
 */
#ifndef PAGEFERRY_KEEPER_H
#define PAGEFERRY_KEEPER_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "keeper-protocol.h"

#include <stdbool.h>
#include <sys/types.h>

/* One hierarchy each of cgroup v1, with some spare. */
#define MAX_CGROUPS 16

struct options {
	const char *dir, *skeleton;
	bool new_pid_namespace, offsets;
	bool tied; /* ends with its last client */
	long long monotonic_ns, boottime_ns;
	const char *cgroups[MAX_CGROUPS], *remove_cgroups[MAX_CGROUPS];
	int nr_cgroups, nr_remove_cgroups;
};

/* The process that was spawned. */
struct child {
	enum keeper_state state;
	int value; /* exit code or signal */
	pid_t pid; /* 0 unless running */
	int pidfd; /* -1 unless running */
};

/* keeper-start.c */
__attribute__((noreturn, format(printf, 1, 2))) void fail(const char *format, ...);
void parse_options(int argc, char **argv, struct options *options);
/* Returns in the keeper itself, in its session, cgroups and namespaces. */
void daemonise(const struct options *options);
/* Everything that can fail has succeeded: the started process exits with 0. */
void report_started(void);

/* keeper-tree.c */
int spawn(struct child *child, int skeleton_fd, const struct keeper_request *request, const int *fds, int nr_fds);
/* Sends SIGKILL to all known descendants. Call it again for each SIGCHLD. */
void kill_all(const struct child *child, bool is_pid_1);
/* Reaps all processes that have ended, and writes the exit status of the child. Returns whether any process is left. */
bool reap(struct child *child, int dir_fd);
void remove_cgroups(const struct options *options);

#endif
