/*
 * Decides which thread may install which page, when several threads install and one reads the events of the
 * userfaultfd.
 *
 * The race (seen in practice): an installer looks a page up, the workload discards it, the event is read, madvise
 * returns. Then the installer's UFFDIO_COPY brings the old content back. So two steps exclude each other under a lock:
 * reading events and closing the gate for their pages; looking at the gate and UFFDIO_COPY. An event that is not read
 * yet makes UFFDIO_COPY answer EAGAIN, so nothing is left open between the two.
 *
 *   the thread that reads events  gate_lock, read(2), gate_note, gate_unlock       exclusive
 *   each thread that installs     gate.install: some pages at a time               shared
 *
 * The gate is open for the pages that it was made with, at the addresses that they had then. It closes for good for a
 * page that is discarded, unmapped, moved or overwritten by a move: the thread that reads the events installs those.
 *
 * It lies in a SharedArrayBuffer: one process, many threads.
 */
#ifndef PAGEFERRY_GATE_H
#define PAGEFERRY_GATE_H

#include "common.h"

#include <linux/userfaultfd.h>

struct gate;

/* Reads a gate argument; NULL for undefined. The functions below do nothing with NULL. */
bool gate_arg(napi_env env, napi_value value, struct gate **gate);
void gate_lock(struct gate *gate);
void gate_unlock(struct gate *gate);
/* Closes the gate for events that were read just now, with the lock held. */
void gate_note(struct gate *gate, const struct uffd_msg *msgs, size_t n);

#endif
