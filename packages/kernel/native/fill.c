/* UFFDIO_COPY and UFFDIO_ZEROPAGE of a run table: see fill.h. */
#include "fill.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Returns the bytes filled, or a negative errno when nothing was filled. */
static int64_t fill_once(const struct fill *f, uint64_t address, uint64_t length)
{
	int64_t filled;
	int rc;

	if (f->zero) {
		struct uffdio_zeropage z = {
			.range = { .start = address, .len = length },
			.mode = f->wake ? 0 : UFFDIO_ZEROPAGE_MODE_DONTWAKE,
		};
		rc = ioctl(f->fd, UFFDIO_ZEROPAGE, &z);
		filled = z.zeropage;
	} else {
		struct uffdio_copy c = {
			.dst = address,
			.src = (uint64_t)(uintptr_t)(f->data + f->done * PF_PAGE),
			.len = length,
			.mode = f->wake ? 0 : UFFDIO_COPY_MODE_DONTWAKE,
		};
		rc = ioctl(f->fd, UFFDIO_COPY, &c);
		filled = c.copy;
	}
	if (rc == 0)
		return (int64_t)length;
	/* A partial copy fails with EAGAIN and says how far it came. */
	return filled > 0 ? filled : -errno;
}

static int overwrite_page(const struct fill *f, uint64_t address)
{
	const uint8_t *page = f->data + f->done * PF_PAGE;
	size_t written = 0;

	while (written < PF_PAGE) {
		ssize_t n = pwrite(f->mem_fd, page + written, PF_PAGE - written, (off_t)(address + written));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? errno : ESRCH; /* 0: the address space has no users any more */
		written += (size_t)n;
	}
	return 0;
}

enum fill_state fill_runs(struct fill *f, const struct pf_run *runs, size_t nr_runs, int *err, const char **what)
{
	for (size_t i = 0; i < nr_runs; i++) {
		uint64_t address = (uint64_t)runs[i].first_page * PF_PAGE;
		uint64_t end = address + (uint64_t)runs[i].nr_pages * PF_PAGE, limit = end;

		while (address < end) {
			int64_t filled = fill_once(f, address, limit - address);

			if (filled > 0) {
				f->installed += (uint64_t)filled / PF_PAGE;
				f->done += (uint64_t)filled / PF_PAGE;
				address += (uint64_t)filled;
				if (address == limit)
					limit = end;
				continue;
			}
			switch (-filled) {
			case EEXIST:
				break;
			case EAGAIN:
				return FILL_AGAIN;
			case ENOENT:
				if (limit - address == PF_PAGE)
					return FILL_NO_RANGE;
				limit = address + (limit - address) / PF_PAGE / 2 * PF_PAGE;
				continue;
			case ESRCH:
			case ENOSPC:
				return FILL_GONE;
			default:
				*err = (int)-filled;
				*what = f->zero ? "ioctl(UFFDIO_ZEROPAGE)" : "ioctl(UFFDIO_COPY)";
				return FILL_FAILED;
			}
			if (f->mem_fd >= 0) {
				*err = overwrite_page(f, address);
				if (*err == ESRCH)
					return FILL_GONE;
				if (*err) {
					*what = "pwrite(/proc/PID/mem)";
					return FILL_FAILED;
				}
				f->overwritten++;
			} else {
				f->existing++;
			}
			/* Another thread may have installed the page without a wake, after a thread faulted on it. */
			if (f->wake) {
				struct uffdio_range page = { .start = address, .len = PF_PAGE };
				ioctl(f->fd, UFFDIO_WAKE, &page);
			}
			f->done++;
			address += PF_PAGE;
			if (address == limit)
				limit = end;
		}
	}
	return FILL_DONE;
}
