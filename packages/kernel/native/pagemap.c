/*
 * /proc/PID/pagemap: PAGEMAP_SCAN (Linux 6.7) and the classic 8-byte entries, and clearing of soft-dirty bits.
 */
#include "common.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Younger than the headers of Debian 12 (Linux 6.1); layout and numbers are kernel ABI. */
#ifndef PAGEMAP_SCAN
#define PAGE_IS_WPALLOWED (1 << 0)
#define PAGE_IS_WRITTEN (1 << 1)
#define PAGE_IS_FILE (1 << 2)
#define PAGE_IS_PRESENT (1 << 3)
#define PAGE_IS_SWAPPED (1 << 4)
#define PAGE_IS_PFNZERO (1 << 5)
#define PAGE_IS_HUGE (1 << 6)
#define PM_SCAN_WP_MATCHING (1 << 0)
#define PM_SCAN_CHECK_WPASYNC (1 << 1)

struct page_region {
	uint64_t start;
	uint64_t end;
	uint64_t categories;
};

struct pm_scan_arg {
	uint64_t size;
	uint64_t flags;
	uint64_t start;
	uint64_t end;
	uint64_t walk_end;
	uint64_t vec;
	uint64_t vec_len;
	uint64_t max_pages;
	uint64_t category_inverted;
	uint64_t category_mask;
	uint64_t category_anyof_mask;
	uint64_t return_mask;
};

#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#endif

/* src/pagemap.ts repeats these as literals. */
_Static_assert(PAGE_IS_WPALLOWED == 1 && PAGE_IS_WRITTEN == 2 && PAGE_IS_FILE == 4 && PAGE_IS_PRESENT == 8 &&
	       PAGE_IS_SWAPPED == 16 && PAGE_IS_PFNZERO == 32 && PAGE_IS_HUGE == 64, "src/pagemap.ts");
_Static_assert(PM_SCAN_WP_MATCHING == 1 && PM_SCAN_CHECK_WPASYNC == 2, "src/pagemap.ts");
_Static_assert(sizeof(struct pm_scan_arg) == 96, "the kernel checks the size exactly");
_Static_assert(PAGEMAP_SCAN == 0xc0606610, "ioctl number");
/* The kernel writes its regions into the caller's table of triples. They are then converted in place. */
_Static_assert(sizeof(struct page_region) == 3 * sizeof(double), "in-place conversion");

/* (fd, startPage, endPage, flags, inverted, mask, anyof, returnMask, maxPages, out) */
static napi_value pagemap_scan(napi_env env, napi_callback_info info)
{
	napi_value argv[10], result;
	double start, end, max_pages, scanned = 0;
	int fd, flags, inverted, mask, anyof, return_mask;
	size_t length;
	void *out;

	if (!pf_args(env, info, 10, argv) || !pf_int(env, argv[0], &fd) || !pf_double(env, argv[1], &start) ||
	    !pf_double(env, argv[2], &end) || !pf_int(env, argv[3], &flags) || !pf_int(env, argv[4], &inverted) ||
	    !pf_int(env, argv[5], &mask) || !pf_int(env, argv[6], &anyof) || !pf_int(env, argv[7], &return_mask) ||
	    !pf_double(env, argv[8], &max_pages) || !pf_bytes(env, argv[9], &out, &length))
		return NULL;
	if (length < sizeof(struct page_region))
		return pf_throw_type(env, "the table holds less than one region");

	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = (uint64_t)flags,
		.start = (uint64_t)start * PF_PAGE,
		.end = (uint64_t)end * PF_PAGE,
		.vec = (uint64_t)(uintptr_t)out,
		.vec_len = length / sizeof(struct page_region),
		.max_pages = (uint64_t)max_pages,
		.category_inverted = (uint64_t)inverted,
		.category_mask = (uint64_t)mask,
		.category_anyof_mask = (uint64_t)anyof,
		.return_mask = (uint64_t)return_mask,
	};
	int regions = ioctl(fd, PAGEMAP_SCAN, &arg);
	if (regions < 0)
		return pf_throw(env, "ioctl(PAGEMAP_SCAN)", errno, 0);

	uint64_t last_end = arg.start;
	for (int i = 0; i < regions; i++) {
		const struct page_region region = ((struct page_region *)out)[i];
		double *triple = (double *)out + 3 * (size_t)i;

		last_end = region.end;
		triple[0] = (double)(region.start / PF_PAGE);
		triple[1] = (double)((region.end - region.start) / PF_PAGE);
		triple[2] = (double)region.categories;
		scanned += triple[1];
	}
	/*
	 * The kernel walks in steps of 512 regions. When the last step reaches the end, it leaves the walk_end of an earlier
	 * step. Regions come in address order. A table that is not full means that everything was walked. A full one was
	 * walked at least to the end of its last region.
	 */
	uint64_t walked = arg.walk_end > last_end ? arg.walk_end : last_end;
	if ((uint64_t)regions < arg.vec_len && (max_pages == 0 || scanned < max_pages))
		walked = arg.end;

	if (napi_create_object(env, &result) != napi_ok)
		return NULL;
	pf_set_number(env, result, "regions", regions);
	pf_set_number(env, result, "walkEndPage", (double)(walked / PF_PAGE));
	return result;
}

/* (fd, firstPage, nrPages, out): entries read; fewer only at the end of the address space */
static napi_value pagemap_read(napi_env env, napi_callback_info info)
{
	napi_value argv[4];
	double first, pages;
	size_t length, want, got = 0;
	void *out;
	int fd;

	if (!pf_args(env, info, 4, argv) || !pf_int(env, argv[0], &fd) || !pf_double(env, argv[1], &first) ||
	    !pf_double(env, argv[2], &pages) || !pf_bytes(env, argv[3], &out, &length))
		return NULL;
	if (!(pages >= 0 && pages * 8 <= (double)length))
		return pf_throw_type(env, "the table is smaller than the range");
	want = (size_t)pages * 8;
	while (got < want) {
		ssize_t n = pread(fd, (char *)out + got, want - got, (off_t)first * 8 + (off_t)got);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return pf_throw(env, "pread(/proc/PID/pagemap)", errno, 0);
		if (n == 0)
			break;
		got += (size_t)n;
	}
	return pf_number(env, (double)(got / 8));
}

/* proc_pid_clear_refs(5): 4 clears the soft-dirty bit of every page of the process. */
static napi_value pagemap_clear_soft_dirty(napi_env env, napi_callback_info info)
{
	char path[32];
	napi_value argv[1];
	int pid, err = 0;

	if (!pf_args(env, info, 1, argv) || !pf_int(env, argv[0], &pid))
		return NULL;
	snprintf(path, sizeof(path), "/proc/%d/clear_refs", pid);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return pf_throw(env, "open(/proc/PID/clear_refs)", errno, pid);
	if (write(fd, "4", 1) != 1)
		err = errno;
	close(fd);
	if (err)
		return pf_throw(env, "write(/proc/PID/clear_refs)", err, pid);
	return pf_undefined(env);
}

void init_pagemap(napi_env env, napi_value exports)
{
	napi_value pagemap;

	napi_create_object(env, &pagemap);
	pf_set(env, exports, "pagemap", pagemap);
	pf_export(env, pagemap, "scan", pagemap_scan);
	pf_export(env, pagemap, "read", pagemap_read);
	pf_export(env, pagemap, "clearSoftDirty", pagemap_clear_soft_dirty);
}
