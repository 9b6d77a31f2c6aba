/*
 * Another process's memory: process_vm_readv(2) for speed, /proc/PID/mem where the former refuses (PROT_NONE and
 * read-only areas), and the per-page loops that JavaScript would be too slow for.
 *
 * Touching a page that is registered with a userfaultfd and missing blocks the *caller* until the fault is served. A
 * thread that serves faults must not read or write such pages with anything in this file.
 */
#include "common.h"

#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* IOV_MAX, the kernel's limit for one call. */
#define IOVS 1024
/* The kernel pins at most this much at a time; longer calls gain nothing. */
#define CALL_BYTES (4ul << 20)
/* Pages read through /proc/PID/mem after one refused process_vm_readv, so that a large PROT_NONE area does
 * not cost a failing call per page. */
#define FALLBACK_PAGES 64

/* A place in a run table: page `page` of run `index`. */
struct cursor {
	size_t index;
	uint64_t page;
};

static uint64_t run_pages(const struct pf_run *run)
{
	return (uint64_t)run->nr_pages;
}

static uint64_t cursor_address(const struct pf_run *runs, struct cursor at)
{
	return ((uint64_t)runs[at.index].first_page + at.page) * PF_PAGE;
}

static void advance(const struct pf_run *runs, size_t nr, struct cursor *at, uint64_t pages)
{
	at->page += pages;
	while (at->index < nr && at->page >= run_pages(&runs[at->index])) {
		at->page -= run_pages(&runs[at->index]);
		at->index++;
	}
}

/* Remote pieces from the cursor on, up to both limits. Returns their number; *bytes is their length in all. */
static size_t gather(const struct pf_run *runs, size_t nr, struct cursor at, struct iovec *iov, size_t *bytes)
{
	size_t n = 0;

	*bytes = 0;
	while (at.index < nr && *bytes < CALL_BYTES) {
		uint64_t address = cursor_address(runs, at);
		uint64_t length = (run_pages(&runs[at.index]) - at.page) * PF_PAGE;

		if (length > CALL_BYTES - *bytes)
			length = CALL_BYTES - *bytes;
		if (length > 0 && n > 0 && (uint64_t)iov[n - 1].iov_base + iov[n - 1].iov_len == address) {
			iov[n - 1].iov_len += length;
		} else if (length > 0) {
			if (n == IOVS)
				break;
			iov[n++] = (struct iovec){ (void *)address, length };
		}
		*bytes += length;
		advance(runs, nr, &at, length / PF_PAGE);
	}
	return n;
}

/* Transfers all, unless the end or an error comes first; -1 only when nothing at all was transferred. */
static ssize_t pread_full(int fd, void *data, size_t length, uint64_t offset)
{
	size_t done = 0;

	while (done < length) {
		ssize_t got = pread(fd, (char *)data + done, length - done, offset + done);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && done == 0)
			return -1;
		if (got <= 0)
			break;
		done += got;
	}
	return done;
}

static ssize_t pwrite_full(int fd, const void *data, size_t length, uint64_t offset)
{
	size_t done = 0;

	while (done < length) {
		ssize_t put = pwrite(fd, (const char *)data + done, length - done, offset + done);

		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0 && done == 0)
			return -1;
		if (put <= 0)
			break;
		done += put;
	}
	return done;
}

static napi_value read_runs(napi_env env, napi_callback_info info)
{
	struct iovec remote[IOVS];
	struct cursor at = { 0, 0 };
	struct pf_run *runs;
	napi_value argv[5];
	uint64_t pages, done = 0;
	size_t nr, capacity;
	int pid, mem_fd;
	void *out;

	if (!pf_args(env, info, 5, argv) || !pf_int(env, argv[0], &pid) || !pf_int(env, argv[1], &mem_fd) ||
	    !pf_runs(env, argv[2], argv[3], &runs, &nr, &pages) || !pf_bytes(env, argv[4], &out, &capacity))
		return NULL;
	if (pages > capacity / PF_PAGE)
		return pf_throw_type(env, "readRuns: the buffer is too small");
	advance(runs, nr, &at, 0);
	while (done < pages) {
		size_t bytes, fallback;
		size_t n = gather(runs, nr, at, remote, &bytes);
		struct iovec local = { (char *)out + done * PF_PAGE, bytes };
		ssize_t got = process_vm_readv(pid, &local, 1, remote, n, 0);

		if (got < 0 && errno != EFAULT)
			return pf_throw(env, "process_vm_readv", errno, pid);
		if (got >= (ssize_t)PF_PAGE) {
			done += got / PF_PAGE;
			advance(runs, nr, &at, got / PF_PAGE);
			continue;
		}
		fallback = run_pages(&runs[at.index]) - at.page;
		if (fallback > FALLBACK_PAGES)
			fallback = FALLBACK_PAGES;
		got = pread_full(mem_fd, local.iov_base, fallback * PF_PAGE, cursor_address(runs, at));
		if (got < 0 && errno != EIO && errno != EFAULT)
			return pf_throw(env, "pread(/proc/PID/mem)", errno, pid);
		/* The file reads as empty once the address space is gone. An unreadable page is EIO. */
		if (got == 0)
			return pf_throw(env, "pread(/proc/PID/mem)", ESRCH, pid);
		if (got < (ssize_t)PF_PAGE)
			break;
		done += got / PF_PAGE;
		advance(runs, nr, &at, got / PF_PAGE);
	}
	return pf_number(env, done);
}

static napi_value read_bytes(napi_env env, napi_callback_info info)
{
	napi_value argv[3], buffer, array;
	struct iovec local, remote;
	uint64_t address, length, done = 0;
	void *data;
	int pid;

	if (!pf_args(env, info, 3, argv) || !pf_int(env, argv[0], &pid) || !pf_u64(env, argv[1], &address) ||
	    !pf_u64(env, argv[2], &length))
		return NULL;
	if (napi_create_arraybuffer(env, length, &data, &buffer) != napi_ok)
		return pf_throw(env, "malloc", ENOMEM, 0);
	while (done < length) {
		ssize_t got;

		local = (struct iovec){ (char *)data + done, length - done };
		remote = (struct iovec){ (void *)(address + done), length - done };
		got = process_vm_readv(pid, &local, 1, &remote, 1, 0);
		if (got <= 0)
			return pf_throw(env, "process_vm_readv", got < 0 ? errno : EFAULT, pid);
		done += got;
	}
	napi_create_typedarray(env, napi_uint8_array, length, buffer, 0, &array);
	return array;
}

static napi_value write_bytes(napi_env env, napi_callback_info info)
{
	struct iovec local, remote;
	napi_value argv[3];
	uint64_t address;
	size_t length, done = 0;
	void *data;
	int pid;

	if (!pf_args(env, info, 3, argv) || !pf_int(env, argv[0], &pid) || !pf_u64(env, argv[1], &address) ||
	    !pf_bytes(env, argv[2], &data, &length))
		return NULL;
	while (done < length) {
		ssize_t put;

		local = (struct iovec){ (char *)data + done, length - done };
		remote = (struct iovec){ (void *)(address + done), length - done };
		put = process_vm_writev(pid, &local, 1, &remote, 1, 0);
		if (put <= 0)
			return pf_throw(env, "process_vm_writev", put < 0 ? errno : EFAULT, pid);
		done += put;
	}
	return pf_undefined(env);
}

static bool mem_args(napi_env env, napi_callback_info info, int *fd, uint64_t *address, void **data,
		     size_t *length)
{
	napi_value argv[3];

	return pf_args(env, info, 3, argv) && pf_int(env, argv[0], fd) && pf_u64(env, argv[1], address) &&
	       pf_bytes(env, argv[2], data, length);
}

static napi_value mem_pread(napi_env env, napi_callback_info info)
{
	uint64_t address;
	size_t length;
	ssize_t got;
	void *data;
	int fd;

	if (!mem_args(env, info, &fd, &address, &data, &length))
		return NULL;
	got = pread_full(fd, data, length, address);
	return got < 0 ? pf_throw(env, "pread(/proc/PID/mem)", errno, 0) : pf_number(env, got);
}

static napi_value mem_pwrite(napi_env env, napi_callback_info info)
{
	uint64_t address;
	size_t length;
	ssize_t put;
	void *data;
	int fd;

	if (!mem_args(env, info, &fd, &address, &data, &length))
		return NULL;
	put = pwrite_full(fd, data, length, address);
	return put < 0 ? pf_throw(env, "pwrite(/proc/PID/mem)", errno, 0) : pf_number(env, put);
}

static napi_value write_runs(napi_env env, napi_callback_info info)
{
	struct pf_run *runs;
	napi_value argv[4];
	uint64_t pages;
	size_t nr, length;
	char *data;
	int fd;

	if (!pf_args(env, info, 4, argv) || !pf_int(env, argv[0], &fd) ||
	    !pf_runs(env, argv[1], argv[2], &runs, &nr, &pages) ||
	    !pf_bytes(env, argv[3], (void **)&data, &length))
		return NULL;
	if (pages > length / PF_PAGE)
		return pf_throw_type(env, "writeRuns: fewer bytes than the table says");
	for (size_t i = 0; i < nr; i++) {
		size_t bytes = run_pages(&runs[i]) * PF_PAGE;
		ssize_t put = pwrite_full(fd, data, bytes, cursor_address(runs, (struct cursor){ i, 0 }));

		if (put < 0)
			return pf_throw(env, "pwrite(/proc/PID/mem)", errno, 0);
		/* Nothing written and no error: the address space is gone. */
		if ((size_t)put < bytes)
			return pf_throw(env, "pwrite(/proc/PID/mem)", put == 0 ? ESRCH : EFAULT, 0);
		data += bytes;
	}
	return pf_undefined(env);
}

static bool is_zero_page(const unsigned char *page)
{
	const uint64_t *word = (const uint64_t *)page;

	for (size_t i = 0; i < PF_PAGE / 8; i += 8) {
		if ((word[i] | word[i + 1] | word[i + 2] | word[i + 3] | word[i + 4] | word[i + 5] | word[i + 6] |
		     word[i + 7]) != 0)
			return false;
	}
	return true;
}

static napi_value split_zero_pages(napi_env env, napi_callback_info info)
{
	unsigned char *pages, *flags;
	size_t length, nr_flags, kept = 0;
	napi_value argv[3];
	int nr;

	if (!pf_args(env, info, 3, argv) || !pf_bytes(env, argv[0], (void **)&pages, &length) ||
	    !pf_int(env, argv[1], &nr) || !pf_bytes(env, argv[2], (void **)&flags, &nr_flags))
		return NULL;
	if (nr < 0 || (size_t)nr > length / PF_PAGE || (size_t)nr > nr_flags)
		return pf_throw_type(env, "splitZeroPages: a buffer is too small");
	for (size_t i = 0; i < (size_t)nr; i++) {
		flags[i] = is_zero_page(pages + i * PF_PAGE);
		if (flags[i])
			continue;
		if (kept != i)
			memcpy(pages + kept * PF_PAGE, pages + i * PF_PAGE, PF_PAGE);
		kept++;
	}
	return pf_number(env, kept);
}

/*
 * XXH64 with seed 0, written from its specification (github.com/Cyan4973/xxHash, doc/xxhash_spec.md) for the one length
 * that occurs here. A page is 128 whole stripes, so there is no remainder. Each step of a lane is a bijection of the
 * word it takes in: pages that differ in one word always end in different lanes.
 */
#define P1 0x9E3779B185EBCA87ull
#define P2 0xC2B2AE3D27D4EB4Full
#define P3 0x165667B19E3779F9ull
#define P4 0x85EBCA77C2B2AE63ull

static uint64_t rotl(uint64_t x, int n)
{
	return x << n | x >> (64 - n);
}

static uint64_t xxh_round(uint64_t acc, uint64_t word)
{
	return rotl(acc + word * P2, 31) * P1;
}

static uint64_t hash_page(const unsigned char *page)
{
	uint64_t lane[4] = { P1 + P2, P2, 0, 0 - P1 };
	uint64_t hash;

	for (size_t at = 0; at < PF_PAGE; at += 32) {
		for (int i = 0; i < 4; i++) {
			uint64_t word;

			memcpy(&word, page + at + 8 * i, 8);
			lane[i] = xxh_round(lane[i], word);
		}
	}
	hash = rotl(lane[0], 1) + rotl(lane[1], 7) + rotl(lane[2], 12) + rotl(lane[3], 18);
	for (int i = 0; i < 4; i++)
		hash = (hash ^ xxh_round(0, lane[i])) * P1 + P4;
	hash += PF_PAGE;
	hash = (hash ^ hash >> 33) * P2;
	hash = (hash ^ hash >> 29) * P3;
	return hash ^ hash >> 32;
}

static napi_value hash_pages(napi_env env, napi_callback_info info)
{
	unsigned char *pages;
	uint64_t *out;
	size_t length, out_bytes;
	napi_value argv[3];
	int nr;

	if (!pf_args(env, info, 3, argv) || !pf_bytes(env, argv[0], (void **)&pages, &length) ||
	    !pf_int(env, argv[1], &nr) || !pf_bytes(env, argv[2], (void **)&out, &out_bytes))
		return NULL;
	if (nr < 0 || (size_t)nr > length / PF_PAGE || (size_t)nr > out_bytes / 8)
		return pf_throw_type(env, "hashPages: a buffer is too small");
	for (size_t i = 0; i < (size_t)nr; i++)
		out[i] = hash_page(pages + i * PF_PAGE);
	return pf_undefined(env);
}

void init_memory(napi_env env, napi_value exports)
{
	napi_value object;

	napi_create_object(env, &object);
	pf_export(env, object, "readRuns", read_runs);
	pf_export(env, object, "readBytes", read_bytes);
	pf_export(env, object, "writeBytes", write_bytes);
	pf_export(env, object, "pread", mem_pread);
	pf_export(env, object, "pwrite", mem_pwrite);
	pf_export(env, object, "writeRuns", write_runs);
	pf_export(env, object, "splitZeroPages", split_zero_pages);
	pf_export(env, object, "hashPages", hash_pages);
	pf_set(env, exports, "memory", object);
}
