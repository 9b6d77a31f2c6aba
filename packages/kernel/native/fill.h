#ifndef PAGEFERRY_FILL_H
#define PAGEFERRY_FILL_H

#include "common.h"

/*
 * Filling a run table.
 *
 * One ioctl per run, resumed behind partial copies. The errno of an ioctl that filled nothing is a statement about its
 * first page or about the whole address space:
 *
 *   EEXIST          the page exists: keep it, or overwrite it through /proc/PID/mem
 *   EAGAIN          the map is changing: the events must be read before anything can be installed
 *   ENOENT          the range is not (any more) registered with this userfaultfd, or does not lie in one area
 *   ESRCH, ENOSPC   the address space is gone (ENOSPC: it is going)
 *
 * The caller's runs know nothing of areas (VMAs), which also split and merge by themselves. So on ENOENT the run is
 * halved, down to the one page that is really outside.
 *
 * `done` counts pages of the table in order, whatever happened to each, so the caller can resume there.
 */
struct fill {
	int fd;
	int mem_fd; /* -1: existing pages are kept */
	bool zero;
	bool wake;
	const uint8_t *data;
	uint64_t done, installed, existing, overwritten;
};

enum fill_state { FILL_DONE, FILL_AGAIN, FILL_NO_RANGE, FILL_GONE, FILL_FAILED };

/* Begins with the first run, whose data is at the start of `f->data`. FILL_FAILED: *err and *what say which call failed
 * and why. */
enum fill_state fill_runs(struct fill *f, const struct pf_run *runs, size_t nr_runs, int *err, const char **what);

#endif
