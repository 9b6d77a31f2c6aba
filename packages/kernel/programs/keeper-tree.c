/* The processes of the keeper: the one child that it makes, and descendants of it that were orphaned. */
#include "keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A child execs within a millisecond, unless it was born into a frozen cgroup. */
#define EXEC_TIMEOUT_MS 5000
/* A cgroup stays busy for a moment after its last process was reaped. */
#define RMDIR_TRIES 100
#define RMDIR_PAUSE_NS 10000000

/* Runs in the child, between clone3 and execve: only async-signal-safe calls. Returns by _exit or not at all. */
__attribute__((noreturn)) static void become_skeleton(int skeleton_fd, int socket_fd, int error_fd)
{
	char *argv[] = { "pageferry-skeleton", NULL }, *envp[] = { NULL };
	sigset_t none;
	int err;

	setsid();
	for (int signal_number = 1; signal_number < NSIG; signal_number++)
		signal(signal_number, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	/* error_fd or skeleton_fd may have the number 3: both move out of the way first. */
	error_fd = fcntl(error_fd, F_DUPFD_CLOEXEC, 4);
	int exec_fd = fcntl(skeleton_fd, F_DUPFD_CLOEXEC, 4);
	int moved_fd = fcntl(socket_fd, F_DUPFD_CLOEXEC, 4);
	if (error_fd >= 0 && exec_fd >= 0 && moved_fd >= 0 && dup2(moved_fd, 3) == 3 &&
	    syscall(SYS_close_range, 4, ~0u, CLOSE_RANGE_CLOEXEC) == 0)
		syscall(SYS_execveat, exec_fd, "", argv, envp, AT_EMPTY_PATH);
	err = errno;
	_exit(write(error_fd, &err, sizeof(err)) < 0 ? 127 : 126);
}

int spawn(struct child *child, int skeleton_fd, const struct keeper_request *request, const int *fds, int nr_fds)
{
	int error_fds[2], pidfd = -1, err = 0;
	pid_t tid = request->pid;
	struct clone_args args = {
		.flags = CLONE_PIDFD,
		.pidfd = (uint64_t)(uintptr_t)&pidfd,
		.exit_signal = SIGCHLD,
	};

	if (child->state != KEEPER_NONE)
		return EALREADY;
	if (nr_fds != 1 + !!(request->flags & KEEPER_SPAWN_CGROUP) || request->pid < 0)
		return EINVAL;
	if (request->pid > 0) {
		args.set_tid = (uint64_t)(uintptr_t)&tid;
		args.set_tid_size = 1;
	}
	if (request->flags & KEEPER_SPAWN_CGROUP) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (uint64_t)fds[1];
	}
	if (pipe2(error_fds, O_CLOEXEC) < 0)
		return errno;
	pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof(args));
	if (pid == 0)
		become_skeleton(skeleton_fd, fds[0], error_fds[1]);
	if (pid < 0)
		err = errno;
	close(error_fds[1]);
	if (pid > 0) {
		struct pollfd end = { .fd = error_fds[0], .events = POLLIN };
		int ready = poll(&end, 1, EXEC_TIMEOUT_MS);

		if (ready <= 0)
			err = ETIMEDOUT;
		else if (read(error_fds[0], &err, sizeof(err)) != sizeof(err))
			err = 0; /* closed by the exec */
		if (err) {
			kill(pid, SIGKILL);
			waitpid(pid, NULL, 0);
			close(pidfd);
		}
	}
	close(error_fds[0]);
	if (!err) {
		child->pid = pid;
		child->pidfd = pidfd;
		child->state = KEEPER_RUNNING;
	}
	return err;
}

static void write_exit_status(const struct child *child, int dir_fd)
{
	static const char temporary[] = KEEPER_STATUS_FILE ".tmp";
	char text[32];
	int n = snprintf(text, sizeof(text), "%s %d\n", child->state == KEEPER_EXITED ? "exited" : "signaled",
			 child->value);
	int fd = openat(dir_fd, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0)
		return;
	if (write(fd, text, (size_t)n) == n && fsync(fd) == 0)
		renameat(dir_fd, temporary, dir_fd, KEEPER_STATUS_FILE);
	close(fd);
}

/*
 * As pid 1 of a namespace, kills every other process in it. Otherwise kills the present children; their children become
 * ours (subreaper) when they die.
 */
void kill_all(const struct child *child, bool is_pid_1)
{
	char path[64];
	FILE *children;
	int pid;

	if (is_pid_1) {
		kill(-1, SIGKILL);
		return;
	}
	snprintf(path, sizeof(path), "/proc/self/task/%d/children", (int)getpid());
	children = fopen(path, "re");
	if (!children) {
		if (child->state == KEEPER_RUNNING)
			kill(child->pid, SIGKILL);
		return;
	}
	while (fscanf(children, "%d", &pid) == 1)
		kill(pid, SIGKILL);
	fclose(children);
}

bool reap(struct child *child, int dir_fd)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG | __WALL)) > 0) {
		if (pid != child->pid)
			continue;
		child->state = WIFSIGNALED(status) ? KEEPER_SIGNALED : KEEPER_EXITED;
		child->value = WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
		child->pid = 0; /* the number may come again for an orphan */
		close(child->pidfd);
		child->pidfd = -1;
		write_exit_status(child, dir_fd);
	}
	return pid == 0;
}

void remove_cgroups(const struct options *options)
{
	struct timespec pause = { .tv_nsec = RMDIR_PAUSE_NS };

	for (int i = 0; i < options->nr_remove_cgroups; i++)
		for (int try = 0; try < RMDIR_TRIES; try++) {
			if (rmdir(options->remove_cgroups[i]) == 0 || errno != EBUSY)
				break;
			nanosleep(&pause, NULL);
		}
}
