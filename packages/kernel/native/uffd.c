/*
 * userfaultfd: ioctls and events of one descriptor, ours or one taken from another process.
 *
 * When the workload changes its own memory map, an errno of the kernel is not an error but a race. The caller gets it
 * as an outcome (see fill_runs). Everything else is thrown.
 */
#include "common.h"
#include "fill.h"
#include "uffd-events.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Younger than the headers of Debian 12 (Linux 6.1); the numbers are kernel ABI. */
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef UFFD_FEATURE_MOVE
#define UFFD_FEATURE_MOVE (1 << 16)
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

/* src/uffd.ts repeats these as literals. */
_Static_assert(UFFD_FEATURE_PAGEFAULT_FLAG_WP == 1 << 0, "src/uffd.ts");
_Static_assert(UFFD_FEATURE_EVENT_FORK == 1 << 1, "src/uffd.ts");
_Static_assert(UFFD_FEATURE_EVENT_REMAP == 1 << 2, "src/uffd.ts");
_Static_assert(UFFD_FEATURE_EVENT_REMOVE == 1 << 3, "src/uffd.ts");
_Static_assert(UFFD_FEATURE_MISSING_HUGETLBFS == 1 << 4, "src/uffd.ts");
_Static_assert(UFFD_FEATURE_MISSING_SHMEM == 1 << 5, "src/uffd.ts");
_Static_assert(UFFD_FEATURE_EVENT_UNMAP == 1 << 6, "src/uffd.ts");
_Static_assert(UFFD_FEATURE_SIGBUS == 1 << 7, "src/uffd.ts");
_Static_assert(UFFD_FEATURE_THREAD_ID == 1 << 8, "src/uffd.ts");
_Static_assert(UFFD_FEATURE_EXACT_ADDRESS == 1 << 11, "src/uffd.ts");
_Static_assert(UFFD_FEATURE_WP_HUGETLBFS_SHMEM == 1 << 12, "src/uffd.ts");
_Static_assert(UFFD_FEATURE_WP_UNPOPULATED == 1 << 13, "src/uffd.ts");
_Static_assert(UFFD_FEATURE_POISON == 1 << 14, "src/uffd.ts");
_Static_assert(UFFD_FEATURE_WP_ASYNC == 1 << 15, "src/uffd.ts");
_Static_assert(UFFD_FEATURE_MOVE == 1 << 16, "src/uffd.ts");
_Static_assert(UFFDIO_REGISTER_MODE_MISSING == 1 && UFFDIO_REGISTER_MODE_WP == 2 &&
	       UFFDIO_REGISTER_MODE_MINOR == 4, "src/uffd.ts");
_Static_assert(UFFD_PAGEFAULT_FLAG_WRITE == 1 && UFFD_PAGEFAULT_FLAG_WP == 2 &&
	       UFFD_PAGEFAULT_FLAG_MINOR == 4, "src/uffd.ts");
_Static_assert(UFFD_USER_MODE_ONLY == 1, "src/uffd.ts");
_Static_assert(sizeof(struct uffd_msg) == 32, "event layout");
_Static_assert(sizeof(struct uffdio_copy) == 40, "ioctl layout");

static napi_value uffd_create(napi_env env, napi_callback_info info)
{
	napi_value argv[1];
	int flags;

	if (!pf_args(env, info, 1, argv) || !pf_int(env, argv[0], &flags))
		return NULL;
	int fd = (int)syscall(SYS_userfaultfd, flags);
	if (fd < 0)
		return pf_throw(env, "userfaultfd", errno, 0);
	return pf_number(env, fd);
}

static napi_value uffd_api(napi_env env, napi_callback_info info)
{
	napi_value argv[2], result;
	struct uffdio_api api = { .api = UFFD_API };
	uint64_t features;
	int fd;

	if (!pf_args(env, info, 2, argv) || !pf_int(env, argv[0], &fd) || !pf_u64(env, argv[1], &features))
		return NULL;
	api.features = features;
	if (ioctl(fd, UFFDIO_API, &api) < 0)
		return pf_throw(env, "ioctl(UFFDIO_API)", errno, 0);
	if (napi_create_object(env, &result) != napi_ok)
		return NULL;
	pf_set(env, result, "features", pf_bigint(env, api.features));
	pf_set(env, result, "ioctls", pf_bigint(env, api.ioctls));
	return result;
}

static bool read_range(napi_env env, napi_value *argv, int *fd, struct uffdio_range *range)
{
	uint64_t start, len;

	if (!pf_int(env, argv[0], fd) || !pf_u64(env, argv[1], &start) || !pf_u64(env, argv[2], &len))
		return false;
	range->start = start;
	range->len = len;
	return true;
}

static napi_value uffd_register(napi_env env, napi_callback_info info)
{
	napi_value argv[4];
	struct uffdio_register reg = { 0 };
	int fd, mode;

	if (!pf_args(env, info, 4, argv) || !read_range(env, argv, &fd, &reg.range) || !pf_int(env, argv[3], &mode))
		return NULL;
	reg.mode = (uint64_t)mode;
	if (ioctl(fd, UFFDIO_REGISTER, &reg) < 0)
		return pf_throw(env, "ioctl(UFFDIO_REGISTER)", errno, 0);
	return pf_bigint(env, reg.ioctls);
}

static napi_value uffd_unregister(napi_env env, napi_callback_info info)
{
	napi_value argv[3];
	struct uffdio_range range;
	int fd;

	if (!pf_args(env, info, 3, argv) || !read_range(env, argv, &fd, &range))
		return NULL;
	if (ioctl(fd, UFFDIO_UNREGISTER, &range) < 0)
		return pf_throw(env, "ioctl(UFFDIO_UNREGISTER)", errno, 0);
	return pf_undefined(env);
}

static napi_value uffd_wake(napi_env env, napi_callback_info info)
{
	napi_value argv[3];
	struct uffdio_range range;
	int fd;

	if (!pf_args(env, info, 3, argv) || !read_range(env, argv, &fd, &range))
		return NULL;
	if (ioctl(fd, UFFDIO_WAKE, &range) < 0)
		return pf_throw(env, "ioctl(UFFDIO_WAKE)", errno, 0);
	return pf_undefined(env);
}

static napi_value uffd_write_protect(napi_env env, napi_callback_info info)
{
	napi_value argv[4];
	struct uffdio_writeprotect wp = { 0 };
	bool on;
	int fd;

	if (!pf_args(env, info, 4, argv) || !read_range(env, argv, &fd, &wp.range) || !pf_bool(env, argv[3], &on))
		return NULL;
	wp.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
	if (ioctl(fd, UFFDIO_WRITEPROTECT, &wp) < 0)
		return pf_throw(env, "ioctl(UFFDIO_WRITEPROTECT)", errno, 0);
	return pf_undefined(env);
}

static const char *const fill_names[] = {
	[FILL_DONE] = "done", [FILL_AGAIN] = "again", [FILL_NO_RANGE] = "no-range", [FILL_GONE] = "gone",
};

static napi_value fill_and_report(napi_env env, struct fill *f, const struct pf_run *runs, size_t nr_runs)
{
	int err = 0;
	const char *what = NULL;
	napi_value result, state;
	enum fill_state end = fill_runs(f, runs, nr_runs, &err, &what);

	if (end == FILL_FAILED)
		return pf_throw(env, what, err, 0);
	if (napi_create_object(env, &result) != napi_ok ||
	    napi_create_string_utf8(env, fill_names[end], NAPI_AUTO_LENGTH, &state) != napi_ok)
		return NULL;
	pf_set(env, result, "state", state);
	pf_set_number(env, result, "pages", (double)f->done);
	pf_set_number(env, result, "installed", (double)f->installed);
	pf_set_number(env, result, "existing", (double)f->existing);
	pf_set_number(env, result, "overwritten", (double)f->overwritten);
	return result;
}

/* (fd, memFd or -1, runs, nrRuns, data, wake) */
static napi_value uffd_install_runs(napi_env env, napi_callback_info info)
{
	napi_value argv[6];
	struct fill f = { 0 };
	struct pf_run *runs;
	size_t nr_runs, length;
	uint64_t pages;
	void *data;

	if (!pf_args(env, info, 6, argv) || !pf_int(env, argv[0], &f.fd) || !pf_int(env, argv[1], &f.mem_fd) ||
	    !pf_runs(env, argv[2], argv[3], &runs, &nr_runs, &pages) || !pf_bytes(env, argv[4], &data, &length) ||
	    !pf_bool(env, argv[5], &f.wake))
		return NULL;
	if (pages > length / PF_PAGE)
		return pf_throw_type(env, "the run table names more pages than the data holds");
	f.data = data;
	return fill_and_report(env, &f, runs, nr_runs);
}

/* (fd, runs, nrRuns, wake) */
static napi_value uffd_zero_runs(napi_env env, napi_callback_info info)
{
	napi_value argv[4];
	struct fill f = { .zero = true, .mem_fd = -1 };
	struct pf_run *runs;
	size_t nr_runs;
	uint64_t pages;

	if (!pf_args(env, info, 4, argv) || !pf_int(env, argv[0], &f.fd) ||
	    !pf_runs(env, argv[1], argv[2], &runs, &nr_runs, &pages) || !pf_bool(env, argv[3], &f.wake))
		return NULL;
	return fill_and_report(env, &f, runs, nr_runs);
}

/*
 * (fd, address): whether the page there is registered. It tries UFFDIO_COPY of a page that cannot be read. The kernel
 * first checks whether the map is changing (EAGAIN), then looks for the area (ENOENT), and only then reads the page to
 * copy.
 */
static napi_value uffd_is_registered(napi_env env, napi_callback_info info)
{
	struct uffdio_copy copy = { .src = 0, .len = PF_PAGE };
	napi_value argv[2];
	uint64_t address;
	int fd;

	if (!pf_args(env, info, 2, argv) || !pf_int(env, argv[0], &fd) || !pf_u64(env, argv[1], &address))
		return NULL;
	copy.dst = address;
	if (ioctl(fd, UFFDIO_COPY, &copy) == 0 || errno == EFAULT || errno == EEXIST)
		return pf_number(env, 1);
	if (errno == EAGAIN || errno == ENOENT || errno == ESRCH || errno == ENOSPC)
		return pf_number(env, 0);
	return pf_throw(env, "ioctl(UFFDIO_COPY)", errno, 0);
}

static void set_type(napi_env env, napi_value event, const char *type)
{
	napi_value name;

	if (napi_create_string_utf8(env, type, NAPI_AUTO_LENGTH, &name) == napi_ok)
		pf_set(env, event, "type", name);
}

static bool describe_event(napi_env env, napi_value event, const struct uffd_msg *msg)
{
	switch (msg->event) {
	case UFFD_EVENT_PAGEFAULT:
		set_type(env, event, "pagefault");
		pf_set(env, event, "address", pf_bigint(env, msg->arg.pagefault.address));
		pf_set_number(env, event, "flags", (double)msg->arg.pagefault.flags);
		pf_set_number(env, event, "tid", msg->arg.pagefault.feat.ptid);
		return true;
	case UFFD_EVENT_FORK:
		set_type(env, event, "fork");
		pf_set_number(env, event, "fd", (int)msg->arg.fork.ufd);
		return true;
	case UFFD_EVENT_REMAP:
		set_type(env, event, "remap");
		pf_set(env, event, "from", pf_bigint(env, msg->arg.remap.from));
		pf_set(env, event, "to", pf_bigint(env, msg->arg.remap.to));
		pf_set(env, event, "length", pf_bigint(env, msg->arg.remap.len));
		return true;
	case UFFD_EVENT_REMOVE:
	case UFFD_EVENT_UNMAP:
		set_type(env, event, msg->event == UFFD_EVENT_REMOVE ? "remove" : "unmap");
		pf_set(env, event, "start", pf_bigint(env, msg->arg.remove.start));
		pf_set(env, event, "end", pf_bigint(env, msg->arg.remove.end));
		return true;
	default:
		return false;
	}
}

napi_value pf_uffd_events(napi_env env, const struct uffd_msg *msgs, uint64_t n)
{
	napi_value result;

	if (napi_create_array(env, &result) != napi_ok)
		return NULL;
	for (uint64_t i = 0; i < n; i++) {
		napi_value event;

		if (napi_create_object(env, &event) != napi_ok)
			return NULL;
		if (!describe_event(env, event, &msgs[i]))
			return pf_throw(env, "read(userfaultfd)", EPROTO, 0);
		if (napi_set_element(env, result, (uint32_t)i, event) != napi_ok)
			return NULL;
	}
	return result;
}

static napi_value uffd_read_events(napi_env env, napi_callback_info info)
{
	struct uffd_msg msgs[UFFD_MAX_EVENTS];
	napi_value argv[2];
	int fd, max, flags;
	ssize_t n;

	if (!pf_args(env, info, 2, argv) || !pf_int(env, argv[0], &fd) || !pf_int(env, argv[1], &max))
		return NULL;
	if (max < 1 || max > UFFD_MAX_EVENTS)
		max = UFFD_MAX_EVENTS;
	flags = fcntl(fd, F_GETFL);
	if (flags < 0)
		return pf_throw(env, "fcntl(F_GETFL)", errno, 0);
	/* A blocking read would stop the event loop until the workload faults, perhaps forever. */
	if (!(flags & O_NONBLOCK))
		return pf_throw_type(env, "the userfaultfd is not O_NONBLOCK");
	do
		n = read(fd, msgs, (size_t)max * sizeof(msgs[0]));
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN)
		n = 0;
	if (n < 0)
		return pf_throw(env, "read(userfaultfd)", errno, 0);
	return pf_uffd_events(env, msgs, (uint64_t)n / sizeof(msgs[0]));
}

void init_uffd(napi_env env, napi_value exports)
{
	napi_value uffd;

	napi_create_object(env, &uffd);
	pf_set(env, exports, "uffd", uffd);
	pf_export(env, uffd, "create", uffd_create);
	pf_export(env, uffd, "api", uffd_api);
	pf_export(env, uffd, "register", uffd_register);
	pf_export(env, uffd, "unregister", uffd_unregister);
	pf_export(env, uffd, "wake", uffd_wake);
	pf_export(env, uffd, "writeProtect", uffd_write_protect);
	pf_export(env, uffd, "installRuns", uffd_install_runs);
	pf_export(env, uffd, "zeroRuns", uffd_zero_runs);
	pf_export(env, uffd, "isRegistered", uffd_is_registered);
	pf_export(env, uffd, "readEvents", uffd_read_events);
}
