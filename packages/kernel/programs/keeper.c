/*
 * The keeper of one restored process tree.
 *
 *   keeper --dir DIR --skeleton FILE [--new-pid-namespace] [--monotonic-offset-ns N] [--boottime-offset-ns N]
 *          [--cgroup PATH]... [--remove-cgroup PATH]... [--tied]
 *
 * The keeper has three tasks. It is parent and reaper of the tree, and records how it ended. It is the first process of
 * the tree's pid namespace, if that has one of its own. It holds descriptors that must stay open while the tree lives,
 * above all the userfaultfd: without it missing pages would silently read as zeros.
 *
 * It therefore outlives the worker that started it and does next to nothing. The offsets are relative to the clocks of
 * the host, as in /proc/PID/timens_offsets. The keeper of a dummy is --tied: it ends with the last client, and its tree
 * with it.
 */
#include "keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

/* A worker, its successor after a crash, a person looking: more clients than that are a mistake. */
#define MAX_CLIENTS 8
/* A keeper without a child is useless once its worker is gone. */
#define UNUSED_TIMEOUT_MS 60000
/* For a tied keeper: its launcher connects at once, or was killed. */
#define TIED_TIMEOUT_MS 20000

static struct options options;
static struct child child = { .state = KEEPER_NONE, .pidfd = -1 };
static int dir_fd, skeleton_fd, listen_fd, child_fd;
static int clients[MAX_CLIENTS];
static struct {
	char name[KEEPER_NAME_BYTES];
	int fd;
} held[KEEPER_MAX_HELD];
static int nr_held;
static bool had_client, killing, quitting;

static void prepare_signals(void)
{
	static const int ignored[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE, SIGUSR1, SIGUSR2, SIGALRM, SIGTSTP };
	sigset_t set;

	for (size_t i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++)
		signal(ignored[i], SIG_IGN);
	signal(SIGCHLD, SIG_DFL); /* if inherited as ignored, children would vanish without a status */
	sigfillset(&set);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	child_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (child_fd < 0)
		fail("signalfd");
}

static void prepare_socket(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = KEEPER_SOCKET };
	mode_t mask;

	listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (listen_fd < 0)
		fail("socket");
	/* Relative, because a socket address is at most 107 characters long. */
	if (fchdir(dir_fd) < 0)
		fail("chdir %s", options.dir);
	mask = umask(0077);
	if (bind(listen_fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		fail("bind %s/%s", options.dir, KEEPER_SOCKET);
	umask(mask);
	if (listen(listen_fd, MAX_CLIENTS) < 0)
		fail("listen");
	if (chdir("/") < 0)
		fail("chdir /");
}

static int find_held(const char *name)
{
	for (int i = 0; i < nr_held; i++)
		if (strcmp(held[i].name, name) == 0)
			return i;
	return -1;
}

static int hold(const char *name, int *fds, int nr_fds)
{
	int i = find_held(name);

	if (nr_fds != 1 || name[0] == '\0')
		return EINVAL;
	if (i >= 0) {
		close(held[i].fd);
	} else if (nr_held == KEEPER_MAX_HELD) {
		return ENOSPC;
	} else {
		i = nr_held++;
		strcpy(held[i].name, name);
	}
	held[i].fd = fds[0];
	fds[0] = -1; /* kept */
	return 0;
}

static int drop(const char *name)
{
	int i = find_held(name);

	if (i < 0)
		return ENOENT;
	close(held[i].fd);
	held[i] = held[--nr_held];
	return 0;
}

struct message {
	struct keeper_reply reply;
	char names[KEEPER_MAX_HELD][KEEPER_NAME_BYTES];
};

/* Handles one request; *send_fd is a descriptor to send along. */
static size_t handle(const struct keeper_request *request, int *fds, int nr_fds, struct message *message,
		     int *send_fd)
{
	struct keeper_reply *reply = &message->reply;
	size_t length = sizeof(*reply);
	int i;

	switch (request->op) {
	case KEEPER_SPAWN:
		reply->err = spawn(&child, skeleton_fd, request, fds, nr_fds);
		reply->pid = child.pid;
		if (!reply->err)
			*send_fd = child.pidfd;
		break;
	case KEEPER_HOLD:
		reply->err = hold(request->name, fds, nr_fds);
		break;
	case KEEPER_FETCH:
		i = find_held(request->name);
		if (i < 0)
			reply->err = ENOENT;
		else
			*send_fd = held[i].fd;
		break;
	case KEEPER_LIST:
		reply->count = (uint32_t)nr_held;
		for (i = 0; i < nr_held; i++)
			memcpy(message->names[i], held[i].name, KEEPER_NAME_BYTES);
		length += (size_t)nr_held * KEEPER_NAME_BYTES;
		break;
	case KEEPER_DROP:
		reply->err = drop(request->name);
		break;
	case KEEPER_STATUS:
		reply->state = child.state;
		reply->value = child.value;
		reply->pid = child.pid;
		break;
	case KEEPER_CHILD:
		if (child.pidfd < 0)
			reply->err = ECHILD;
		reply->pid = child.pid;
		*send_fd = child.pidfd;
		break;
	case KEEPER_KILL:
		killing = child.state != KEEPER_NONE;
		if (killing)
			kill_all(&child, options.new_pid_namespace);
		break;
	case KEEPER_QUIT:
		if (reap(&child, dir_fd))
			reply->err = EBUSY;
		else
			quitting = true;
		break;
	default:
		reply->err = EPROTO;
	}
	return length;
}

/* Serves one request of one client; false when the connection is over. */
static bool serve(int client)
{
	struct keeper_request request = { 0 };
	struct message message = { 0 };
	union {
		char bytes[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec iov = { .iov_base = &request, .iov_len = sizeof(request) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes,
			      .msg_controllen = sizeof(control.bytes) };
	int fds[2] = { -1, -1 }, nr_fds = 0, send_fd = -1;
	ssize_t n = recvmsg(client, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	if (n == 0)
		return false;
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
		nr_fds = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fds, CMSG_DATA(c), (size_t)nr_fds * sizeof(int));
	}
	size_t length = sizeof(message.reply);
	message.reply.version = KEEPER_VERSION;
	message.reply.op = request.op;
	if (n != sizeof(request) || (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || request.version != KEEPER_VERSION)
		message.reply.err = EPROTO;
	else if (memchr(request.name, 0, sizeof(request.name)) == NULL)
		message.reply.err = ENAMETOOLONG;
	else
		length = handle(&request, fds, nr_fds, &message, &send_fd);
	for (int i = 0; i < nr_fds; i++)
		if (fds[i] >= 0)
			close(fds[i]);

	iov.iov_base = &message;
	iov.iov_len = length;
	memset(&control, 0, sizeof(control));
	msg = (struct msghdr){ .msg_iov = &iov, .msg_iovlen = 1 };
	if (send_fd >= 0) {
		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(sizeof(int));
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &send_fd, sizeof(send_fd));
	}
	/* A client that does not read replies is cut off: no client may make the keeper wait. */
	n = sendmsg(client, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	return n == (ssize_t)length;
}

static void accept_client(void)
{
	struct ucred peer;
	socklen_t length = sizeof(peer);
	int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0)
		return;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == geteuid()) {
		for (int i = 0; i < MAX_CLIENTS; i++)
			if (clients[i] < 0) {
				clients[i] = fd;
				had_client = true;
				return;
			}
	}
	close(fd);
}

__attribute__((noreturn)) static void finish(void)
{
	unlinkat(dir_fd, KEEPER_SOCKET, 0);
	remove_cgroups(&options);
	_exit(0);
}

__attribute__((noreturn)) static void keep(void)
{
	for (;;) {
		struct pollfd fds[MAX_CLIENTS + 2];
		struct signalfd_siginfo info;
		int nr_clients = 0;

		for (int i = 0; i < MAX_CLIENTS; i++) {
			fds[i] = (struct pollfd){ .fd = clients[i], .events = POLLIN };
			nr_clients += clients[i] >= 0;
		}
		fds[MAX_CLIENTS] = (struct pollfd){ .fd = nr_clients < MAX_CLIENTS ? listen_fd : -1, .events = POLLIN };
		fds[MAX_CLIENTS + 1] = (struct pollfd){ .fd = child_fd, .events = POLLIN };
		bool unused = child.state == KEEPER_NONE && nr_clients == 0;
		if (options.tied && had_client && nr_clients == 0) {
			if (child.state == KEEPER_NONE)
				finish();
			if (!killing)
				kill_all(&child, options.new_pid_namespace);
			killing = true;
		}
		int patience_ms = options.tied ? TIED_TIMEOUT_MS : UNUSED_TIMEOUT_MS;
		int ready = poll(fds, MAX_CLIENTS + 2, unused ? patience_ms : -1);

		if (ready == 0)
			finish();
		if (ready < 0)
			continue; /* EINTR: a stop and continue */
		for (int i = 0; i < MAX_CLIENTS; i++)
			if (fds[i].revents && !serve(clients[i])) {
				close(clients[i]);
				clients[i] = -1;
			}
		if (fds[MAX_CLIENTS].revents)
			accept_client();
		while (read(child_fd, &info, sizeof(info)) == sizeof(info))
			; /* signals coalesce: only waitpid counts the children */
		bool left = reap(&child, dir_fd);
		if (left && killing)
			kill_all(&child, options.new_pid_namespace);
		if (quitting || (!left && child.state != KEEPER_NONE))
			finish();
	}
}

int main(int argc, char **argv)
{
	int fd;

	/* Close all descriptors that the launcher left open: a held socket or lock would live as long as the workload. */
	do
		fd = open("/dev/null", O_RDWR); /* until 0, 1 and 2 are open */
	while (fd >= 0 && fd < 3);
	syscall(SYS_close_range, 3, ~0u, 0);
	parse_options(argc, argv, &options);
	dir_fd = open(options.dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir_fd < 0)
		fail("open %s", options.dir);
	skeleton_fd = open(options.skeleton, O_RDONLY | O_CLOEXEC);
	if (skeleton_fd < 0)
		fail("open %s", options.skeleton);
	daemonise(&options);

	prctl(PR_SET_NAME, "pf-keeper");
	/* Orphans of the tree come to us and not to the host's init. */
	if (prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
		fail("prctl(PR_SET_CHILD_SUBREAPER)");
	for (int i = 0; i < MAX_CLIENTS; i++)
		clients[i] = -1;
	prepare_signals();
	prepare_socket();
	report_started();
	keep();
}
