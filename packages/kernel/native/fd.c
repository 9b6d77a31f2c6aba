/*
 * Descriptors: taking them from other processes, comparing them, passing them over UNIX sockets, and the calls
 * on them that node:fs does not offer. Every descriptor made here is close-on-exec.
 */
#include "common.h"

#include <fcntl.h>
#include <linux/limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

/* SCM_MAX_FD of the kernel: it refuses more in one message with EINVAL. */
#define MAX_FDS 253
/* `dup` avoids the numbers that a restored process needs for itself. */
#define LOWEST_DUP 64

static napi_value fd_result(napi_env env, const char *what, int fd)
{
	return fd < 0 ? pf_throw(env, what, errno, 0) : pf_number(env, fd);
}

static napi_value fd_pidfd_open(napi_env env, napi_callback_info info)
{
	napi_value argv[1];
	int pid;

	if (!pf_args(env, info, 1, argv) || !pf_int(env, argv[0], &pid))
		return NULL;
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (fd < 0)
		return pf_throw(env, "pidfd_open", errno, pid);
	return pf_number(env, fd);
}

static napi_value fd_pidfd_getfd(napi_env env, napi_callback_info info)
{
	napi_value argv[2];
	int pidfd, fd;

	if (!pf_args(env, info, 2, argv) || !pf_int(env, argv[0], &pidfd) || !pf_int(env, argv[1], &fd))
		return NULL;
	return fd_result(env, "pidfd_getfd", (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0));
}

static napi_value fd_pidfd_send_signal(napi_env env, napi_callback_info info)
{
	napi_value argv[2];
	int pidfd, sig;

	if (!pf_args(env, info, 2, argv) || !pf_int(env, argv[0], &pidfd) || !pf_int(env, argv[1], &sig))
		return NULL;
	if (syscall(SYS_pidfd_send_signal, pidfd, sig, NULL, 0) < 0)
		return pf_throw(env, "pidfd_send_signal", errno, 0);
	return pf_undefined(env);
}

/* linux/pidfd.h of 6.15; Debian 12 has older headers. PIDFD_INFO_SIZE_VER0 is 64 bytes. */
struct exit_info {
	uint64_t mask, cgroupid;
	uint32_t ids[11];
	int32_t exit_code;
};
#define INFO_EXIT (UINT64_C(1) << 3)
#define GET_INFO _IOWR(0xFF, 11, struct exit_info)

/* (pidfd): the wait status of a process that was reaped; -1 when it was not, or when the kernel does not tell */
static napi_value fd_pidfd_exit_code(napi_env env, napi_callback_info info)
{
	struct exit_info answer = { .mask = INFO_EXIT };
	napi_value argv[1];
	int pidfd;

	if (!pf_args(env, info, 1, argv) || !pf_int(env, argv[0], &pidfd))
		return NULL;
	if (ioctl(pidfd, GET_INFO, &answer) < 0 || !(answer.mask & INFO_EXIT))
		return pf_number(env, -1);
	return pf_number(env, answer.exit_code);
}

/* kcmp(2) returns 0 equal, 1 less, 2 greater, 3 different; we return 0, -1, 1, 2, so that it can sort. */
static napi_value fd_kcmp(napi_env env, napi_callback_info info)
{
	static const int orders[] = { 0, -1, 1, 2 };
	napi_value argv[5];
	int pid1, pid2, type;
	uint64_t a, b;

	if (!pf_args(env, info, 5, argv) || !pf_int(env, argv[0], &pid1) || !pf_int(env, argv[1], &pid2) ||
	    !pf_int(env, argv[2], &type) || !pf_u64(env, argv[3], &a) || !pf_u64(env, argv[4], &b))
		return NULL;
	long order = syscall(SYS_kcmp, pid1, pid2, type, (unsigned long)a, (unsigned long)b);
	if (order < 0)
		return pf_throw(env, "kcmp", errno, pid1);
	return pf_number(env, orders[order & 3]);
}

static napi_value fd_pair(napi_env env, const int fds[2])
{
	napi_value pair;

	if (napi_create_array_with_length(env, 2, &pair) != napi_ok)
		return NULL;
	for (uint32_t i = 0; i < 2; i++)
		napi_set_element(env, pair, i, pf_number(env, fds[i]));
	return pair;
}

static napi_value fd_socketpair(napi_env env, napi_callback_info info)
{
	napi_value argv[1];
	int type, fds[2];

	if (!pf_args(env, info, 1, argv) || !pf_int(env, argv[0], &type))
		return NULL;
	if (socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds) < 0)
		return pf_throw(env, "socketpair", errno, 0);
	return fd_pair(env, fds);
}

/*
 * A socket address holds 107 characters of path. A longer path goes through a descriptor of the directory, which the
 * caller closes after bind or connect (*dir_fd, -1 if there is none). Returns an errno.
 */
static int unix_address(char *path, struct sockaddr_un *address, int *dir_fd)
{
	char *slash = strrchr(path, '/');
	int n;

	*dir_fd = -1;
	memset(address, 0, sizeof(*address));
	address->sun_family = AF_UNIX;
	if (strlen(path) < sizeof(address->sun_path)) {
		strcpy(address->sun_path, path);
		return 0;
	}
	if (!slash || slash == path)
		return ENAMETOOLONG;
	*slash = '\0';
	*dir_fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (*dir_fd < 0)
		return errno;
	n = snprintf(address->sun_path, sizeof(address->sun_path), "/proc/self/fd/%d/%s", *dir_fd, slash + 1);
	return n < (int)sizeof(address->sun_path) ? 0 : ENAMETOOLONG;
}

static napi_value unix_socket(napi_env env, napi_callback_info info, bool server)
{
	char path[4096];
	struct sockaddr_un address;
	napi_value argv[2];
	int type, dir_fd, fd = -1, err;
	const char *what = "socket";

	if (!pf_args(env, info, 2, argv) || !pf_string(env, argv[0], path, sizeof(path)) ||
	    !pf_int(env, argv[1], &type))
		return NULL;
	err = unix_address(path, &address, &dir_fd);
	if (!err && (fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0)) < 0)
		err = errno;
	if (!err && server) {
		what = "bind";
		if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 16) < 0)
			err = errno;
	} else if (!err) {
		what = "connect";
		if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
			err = errno;
	}
	if (dir_fd >= 0)
		close(dir_fd);
	if (!err)
		return pf_number(env, fd);
	if (fd >= 0)
		close(fd);
	return pf_throw(env, what, err, 0);
}

static napi_value fd_listen_unix(napi_env env, napi_callback_info info)
{
	return unix_socket(env, info, true);
}

static napi_value fd_connect_unix(napi_env env, napi_callback_info info)
{
	return unix_socket(env, info, false);
}

static napi_value fd_accept_unix(napi_env env, napi_callback_info info)
{
	napi_value argv[1];
	int fd, peer;

	if (!pf_args(env, info, 1, argv) || !pf_int(env, argv[0], &fd))
		return NULL;
	do
		peer = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
	while (peer < 0 && errno == EINTR);
	return fd_result(env, "accept4", peer);
}

union control {
	char bytes[CMSG_SPACE(MAX_FDS * sizeof(int))];
	struct cmsghdr align;
};

static napi_value fd_send(napi_env env, napi_callback_info info)
{
	napi_value argv[3];
	union control control;
	struct iovec iov;
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	uint32_t nr_fds;
	ssize_t n;
	int sock;

	if (!pf_args(env, info, 3, argv) || !pf_int(env, argv[0], &sock) ||
	    !pf_bytes(env, argv[1], &iov.iov_base, &iov.iov_len))
		return NULL;
	if (napi_get_array_length(env, argv[2], &nr_fds) != napi_ok || nr_fds > MAX_FDS)
		return pf_throw_type(env, "fds must be an array of at most 253 descriptors");
	if (nr_fds > 0) {
		memset(&control, 0, sizeof(control));
		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(nr_fds * sizeof(int));
		struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(nr_fds * sizeof(int));
		for (uint32_t i = 0; i < nr_fds; i++) {
			napi_value element;
			int fd;

			if (napi_get_element(env, argv[2], i, &element) != napi_ok || !pf_int(env, element, &fd))
				return NULL;
			memcpy(CMSG_DATA(c) + i * sizeof(int), &fd, sizeof(fd));
		}
	}
	do
		n = sendmsg(sock, &msg, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return pf_throw(env, "sendmsg", errno, 0);
	if ((size_t)n != iov.iov_len)
		return pf_throw(env, "sendmsg", EMSGSIZE, 0); /* a full stream socket: the message is torn */
	return pf_undefined(env);
}

/* Copies the descriptors of a received message into `fds`; returns their number. */
static size_t received_fds(struct msghdr *msg, int *fds)
{
	size_t count = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(fds + count, CMSG_DATA(c), n * sizeof(int));
		count += n;
	}
	return count;
}

/*
 * Returns 0 or an errno. It goes on after a signal (a profiler's timer, a debugger): the answer must not stay in the
 * socket, where the next caller would take it for its own.
 */
static int wait_readable(int fd, int timeout_ms)
{
	int64_t start = pf_now_ns(), left = timeout_ms;

	for (;;) {
		struct pollfd pollfd = { .fd = fd, .events = POLLIN };
		int ready = poll(&pollfd, 1, left > 0 ? (int)left : 0);

		if (ready > 0)
			return 0;
		left = timeout_ms - (pf_now_ns() - start) / 1000000;
		if (ready < 0 && errno != EINTR)
			return errno;
		if (left <= 0)
			return ETIMEDOUT;
	}
}

/* (sock, maxBytes, maxFds, timeoutMs): {bytes, fds}; zero bytes and no fds = the peer closed */
static napi_value fd_recv(napi_env env, napi_callback_info info)
{
	napi_value argv[4], result = NULL, array;
	union control control;
	struct iovec iov;
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes };
	int sock, max_bytes, max_fds, timeout, fds[MAX_FDS], err;
	size_t nr_fds;
	ssize_t n;

	if (!pf_args(env, info, 4, argv) || !pf_int(env, argv[0], &sock) || !pf_int(env, argv[1], &max_bytes) ||
	    !pf_int(env, argv[2], &max_fds) || !pf_int(env, argv[3], &timeout))
		return NULL;
	if (max_bytes < 0 || max_fds < 0 || max_fds > MAX_FDS)
		return pf_throw_type(env, "maxBytes or maxFds is out of range");
	err = wait_readable(sock, timeout);
	if (err)
		return pf_throw(env, "recvmsg", err, 0);
	iov.iov_len = (size_t)max_bytes;
	iov.iov_base = malloc(iov.iov_len + 1);
	if (!iov.iov_base)
		return pf_throw(env, "recvmsg", ENOMEM, 0);
	msg.msg_controllen = max_fds ? CMSG_SPACE((size_t)max_fds * sizeof(int)) : 0;
	do
		n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0) {
		pf_throw(env, "recvmsg", errno, 0);
		goto out;
	}
	/* The space for control data is rounded up: one descriptor more than requested may have come. */
	nr_fds = received_fds(&msg, fds);
	if ((msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || nr_fds > (size_t)max_fds) {
		for (size_t i = 0; i < nr_fds; i++)
			close(fds[i]);
		pf_throw(env, "recvmsg", EMSGSIZE, 0);
		goto out;
	}
	if (napi_create_object(env, &result) != napi_ok || napi_create_array(env, &array) != napi_ok)
		goto out;
	for (size_t i = 0; i < nr_fds; i++)
		napi_set_element(env, array, (uint32_t)i, pf_number(env, fds[i]));
	pf_set(env, result, "bytes", pf_new_bytes(env, iov.iov_base, (size_t)n));
	pf_set(env, result, "fds", array);
out:
	free(iov.iov_base);
	return result;
}

static napi_value fd_fcntl(napi_env env, napi_callback_info info)
{
	napi_value argv[3];
	int fd, cmd, arg;

	if (!pf_args(env, info, 3, argv) || !pf_int(env, argv[0], &fd) || !pf_int(env, argv[1], &cmd) ||
	    !pf_int(env, argv[2], &arg))
		return NULL;
	errno = 0; /* F_GETOWN answers negative numbers that are no errors */
	int result = fcntl(fd, cmd, arg);
	if (result == -1 && errno != 0)
		return pf_throw(env, "fcntl", errno, 0);
	return pf_number(env, result);
}

static napi_value fd_set_receive_low_water(napi_env env, napi_callback_info info)
{
	napi_value argv[2];
	int fd, bytes;

	if (!pf_args(env, info, 2, argv) || !pf_int(env, argv[0], &fd) || !pf_int(env, argv[1], &bytes))
		return NULL;
	if (setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &bytes, sizeof(bytes)) < 0)
		return pf_throw(env, "setsockopt(SO_RCVLOWAT)", errno, 0);
	return pf_undefined(env);
}

static napi_value fd_get_socket_option(napi_env env, napi_callback_info info)
{
	napi_value argv[2];
	int fd, option, value = 0;
	socklen_t length = sizeof(value);

	if (!pf_args(env, info, 2, argv) || !pf_int(env, argv[0], &fd) || !pf_int(env, argv[1], &option))
		return NULL;
	if (getsockopt(fd, SOL_SOCKET, option, &value, &length) < 0)
		return pf_throw(env, "getsockopt", errno, 0);
	return pf_number(env, value);
}

static napi_value fd_dup(napi_env env, napi_callback_info info)
{
	napi_value argv[1];
	int fd;

	if (!pf_args(env, info, 1, argv) || !pf_int(env, argv[0], &fd))
		return NULL;
	return fd_result(env, "fcntl(F_DUPFD_CLOEXEC)", fcntl(fd, F_DUPFD_CLOEXEC, LOWEST_DUP));
}

static napi_value fd_lseek(napi_env env, napi_callback_info info)
{
	napi_value argv[3], result;
	int64_t offset;
	bool lossless;
	int fd, whence;

	if (!pf_args(env, info, 3, argv) || !pf_int(env, argv[0], &fd) || !pf_int(env, argv[2], &whence))
		return NULL;
	if (napi_get_value_bigint_int64(env, argv[1], &offset, &lossless) != napi_ok || !lossless)
		return pf_throw_type(env, "the offset must be a BigInt of 64 bits");
	off_t position = lseek(fd, (off_t)offset, whence);
	if (position < 0)
		return pf_throw(env, "lseek", errno, 0);
	return napi_create_bigint_int64(env, position, &result) == napi_ok ? result : NULL;
}

/* Names of all extended attributes, each with a zero byte behind it. */
static napi_value fd_list_xattr(napi_env env, napi_callback_info info)
{
	napi_value argv[1], result;
	int fd;

	if (!pf_args(env, info, 1, argv) || !pf_int(env, argv[0], &fd))
		return NULL;
	char *names = malloc(XATTR_LIST_MAX);
	if (names == NULL)
		return pf_throw(env, "malloc", ENOMEM, 0);
	ssize_t length = flistxattr(fd, names, XATTR_LIST_MAX);
	int error = errno;
	napi_status status = length < 0 ? napi_ok : napi_create_string_utf8(env, names, (size_t)length, &result);
	free(names);
	if (length < 0)
		return pf_throw(env, "flistxattr", error, 0);
	return status == napi_ok ? result : NULL;
}

/* Gives back what lies in a part of a file; the size stays. The part reads as zeros afterwards. */
static napi_value fd_punch_hole(napi_env env, napi_callback_info info)
{
	napi_value argv[3];
	uint64_t offset, length;
	int fd;

	if (!pf_args(env, info, 3, argv) || !pf_int(env, argv[0], &fd) || !pf_u64(env, argv[1], &offset) ||
	    !pf_u64(env, argv[2], &length))
		return NULL;
	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length) < 0)
		return pf_throw(env, "fallocate", errno, 0);
	return pf_undefined(env);
}

static napi_value fd_flock(napi_env env, napi_callback_info info)
{
	napi_value argv[2];
	int fd, operation;

	if (!pf_args(env, info, 2, argv) || !pf_int(env, argv[0], &fd) || !pf_int(env, argv[1], &operation))
		return NULL;
	if (flock(fd, operation) < 0)
		return pf_throw(env, "flock", errno, 0);
	return pf_undefined(env);
}

/* Whether a description of our own could take the lock. */
static napi_value fd_can_lock(napi_env env, napi_callback_info info)
{
	napi_value argv[4], result;
	uint64_t start, length;
	int fd, type;

	if (!pf_args(env, info, 4, argv) || !pf_int(env, argv[0], &fd) || !pf_int(env, argv[1], &type) ||
	    !pf_u64(env, argv[2], &start) || !pf_u64(env, argv[3], &length))
		return NULL;
	struct flock range = { .l_type = (short)type, .l_start = (off_t)start, .l_len = (off_t)length };
	if (fcntl(fd, F_OFD_GETLK, &range) < 0)
		return pf_throw(env, "fcntl(F_OFD_GETLK)", errno, 0);
	return napi_get_boolean(env, range.l_type == F_UNLCK, &result) == napi_ok ? result : NULL;
}

static struct timespec timespec_of(int64_t ns)
{
	struct timespec time = { .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };

	if (time.tv_nsec < 0) { /* before 1970 */
		time.tv_sec--;
		time.tv_nsec += 1000000000;
	}
	return time;
}

static napi_value fd_set_times(napi_env env, napi_callback_info info)
{
	napi_value argv[3];
	int64_t access, modification;
	bool lossless[2];
	int fd;

	if (!pf_args(env, info, 3, argv) || !pf_int(env, argv[0], &fd))
		return NULL;
	if (napi_get_value_bigint_int64(env, argv[1], &access, &lossless[0]) != napi_ok ||
	    napi_get_value_bigint_int64(env, argv[2], &modification, &lossless[1]) != napi_ok || !lossless[0] ||
	    !lossless[1])
		return pf_throw_type(env, "times must be BigInts of 64 bits");
	const struct timespec times[2] = { timespec_of(access), timespec_of(modification) };
	if (futimens(fd, times) < 0)
		return pf_throw(env, "futimens", errno, 0);
	return pf_undefined(env);
}

static napi_value fd_pipe2(napi_env env, napi_callback_info info)
{
	napi_value argv[1];
	int flags, fds[2];

	if (!pf_args(env, info, 1, argv) || !pf_int(env, argv[0], &flags))
		return NULL;
	if (pipe2(fds, flags | O_CLOEXEC) < 0)
		return pf_throw(env, "pipe2", errno, 0);
	return fd_pair(env, fds);
}

static napi_value fd_eventfd(napi_env env, napi_callback_info info)
{
	napi_value argv[1];
	int flags;

	if (!pf_args(env, info, 1, argv) || !pf_int(env, argv[0], &flags))
		return NULL;
	return fd_result(env, "eventfd2", eventfd(0, flags | EFD_CLOEXEC));
}

static napi_value fd_timerfd(napi_env env, napi_callback_info info)
{
	napi_value argv[2];
	int clock, flags;

	if (!pf_args(env, info, 2, argv) || !pf_int(env, argv[0], &clock) || !pf_int(env, argv[1], &flags))
		return NULL;
	return fd_result(env, "timerfd_create", timerfd_create(clock, flags | TFD_CLOEXEC));
}

static napi_value fd_timerfd_update(napi_env env, napi_callback_info info)
{
	struct itimerspec spec;
	napi_value argv[1];
	int fd;

	if (!pf_args(env, info, 1, argv) || !pf_int(env, argv[0], &fd))
		return NULL;
	if (timerfd_gettime(fd, &spec) < 0)
		return pf_throw(env, "timerfd_gettime", errno, 0);
	return NULL;
}

/* Copies the contents of a pipe without consuming them. Never blocks: an empty pipe with a writer throws EAGAIN. */
static napi_value fd_tee(napi_env env, napi_callback_info info)
{
	napi_value argv[3];
	double length;
	ssize_t n;
	int from, to;

	if (!pf_args(env, info, 3, argv) || !pf_int(env, argv[0], &from) || !pf_int(env, argv[1], &to) ||
	    !pf_double(env, argv[2], &length))
		return NULL;
	do
		n = tee(from, to, (size_t)length, SPLICE_F_NONBLOCK);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return pf_throw(env, "tee", errno, 0);
	return pf_number(env, (double)n);
}

static napi_value fd_open(napi_env env, napi_callback_info info)
{
	char path[4096];
	napi_value argv[3];
	int flags, mode, fd;

	if (!pf_args(env, info, 3, argv) || !pf_string(env, argv[0], path, sizeof(path)) ||
	    !pf_int(env, argv[1], &flags) || !pf_int(env, argv[2], &mode))
		return NULL;
	do
		fd = open(path, flags | O_CLOEXEC, (mode_t)mode);
	while (fd < 0 && errno == EINTR);
	return fd_result(env, "open", fd);
}

static napi_value fd_memfd_create(napi_env env, napi_callback_info info)
{
	char name[250]; /* 249 characters are the limit of memfd_create(2) */
	napi_value argv[1];

	if (!pf_args(env, info, 1, argv) || !pf_string(env, argv[0], name, sizeof(name)))
		return NULL;
	return fd_result(env, "memfd_create", memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
}

static void unmap_shared(napi_env env, void *address, void *length)
{
	munmap(address, (size_t)(uintptr_t)length);
}

static napi_value fd_map_shared(napi_env env, napi_callback_info info)
{
	napi_value argv[2], buffer, array;
	double length;
	int fd;

	if (!pf_args(env, info, 2, argv) || !pf_int(env, argv[0], &fd) || !pf_double(env, argv[1], &length))
		return NULL;
	size_t size = (size_t)length;
	void *address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (address == MAP_FAILED)
		return pf_throw(env, "mmap", errno, 0);
	if (napi_create_external_arraybuffer(env, address, size, unmap_shared, (void *)(uintptr_t)size, &buffer) !=
	    napi_ok) {
		munmap(address, size);
		return pf_throw(env, "mmap", ENOMEM, 0);
	}
	if (napi_create_typedarray(env, napi_uint8_array, size, buffer, 0, &array) != napi_ok)
		return NULL;
	return array;
}

void init_fd(napi_env env, napi_value exports)
{
	napi_value fd;

	napi_create_object(env, &fd);
	pf_set(env, exports, "fd", fd);
	pf_export(env, fd, "pidfdOpen", fd_pidfd_open);
	pf_export(env, fd, "pidfdGetfd", fd_pidfd_getfd);
	pf_export(env, fd, "pidfdSendSignal", fd_pidfd_send_signal);
	pf_export(env, fd, "pidfdExitCode", fd_pidfd_exit_code);
	pf_export(env, fd, "kcmp", fd_kcmp);
	pf_export(env, fd, "socketpair", fd_socketpair);
	pf_export(env, fd, "listenUnix", fd_listen_unix);
	pf_export(env, fd, "acceptUnix", fd_accept_unix);
	pf_export(env, fd, "connectUnix", fd_connect_unix);
	pf_export(env, fd, "send", fd_send);
	pf_export(env, fd, "recv", fd_recv);
	pf_export(env, fd, "fcntl", fd_fcntl);
	pf_export(env, fd, "setReceiveLowWater", fd_set_receive_low_water);
	pf_export(env, fd, "getSocketOption", fd_get_socket_option);
	pf_export(env, fd, "dup", fd_dup);
	pf_export(env, fd, "lseek", fd_lseek);
	pf_export(env, fd, "listXattr", fd_list_xattr);
	pf_export(env, fd, "punchHole", fd_punch_hole);
	pf_export(env, fd, "setTimes", fd_set_times);
	pf_export(env, fd, "flock", fd_flock);
	pf_export(env, fd, "canLock", fd_can_lock);
	pf_export(env, fd, "pipe2", fd_pipe2);
	pf_export(env, fd, "eventfd", fd_eventfd);
	pf_export(env, fd, "timerfd", fd_timerfd);
	pf_export(env, fd, "timerfdUpdate", fd_timerfd_update);
	pf_export(env, fd, "tee", fd_tee);
	pf_export(env, fd, "open", fd_open);
	pf_export(env, fd, "memfdCreate", fd_memfd_create);
	pf_export(env, fd, "mapShared", fd_map_shared);
}
