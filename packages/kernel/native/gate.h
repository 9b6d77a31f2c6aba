/*
 * Who may install which page, when several threads install and one reads the events of the userfaultfd.
 *
 * The race (kernel-facts: seen): an installer looks a page up, the workload discards it, the event is read, madvise
 * returns, and the installer's UFFDIO_COPY brings the old content back. So reading events and closing the gate for what
 * they name is one step under a lock, and so are looking at the gate and UFFDIO_COPY. An event that is not read yet
 * makes UFFDIO_COPY answer EAGAIN: between the two nothing is left open.
 *
 *   the one that reads events     gate_lock, read(2), gate_note, gate_unlock       exclusive
 *   each that installs            gate.install: some pages at a time               shared
 *
 * The gate is open for the pages that it was made with, at the addresses that they had then, and closes for a page
 * that is discarded, unmapped, moved or overwritten by a move, for good: whoever reads the events installs those.
 *
 * It lies in a SharedArrayBuffer: one process, many threads.
 */
#ifndef PAGEFERRY_GATE_H
#define PAGEFERRY_GATE_H

#include "common.h"

#include <linux/userfaultfd.h>

struct gate;

/* A gate, or NULL for undefined: all of the functions below do nothing with NULL. */
bool gate_arg(napi_env env, napi_value value, struct gate **gate);
void gate_lock(struct gate *gate);
void gate_unlock(struct gate *gate);
/* The lock is held, and these were read just now. */
void gate_note(struct gate *gate, const struct uffd_msg *msgs, size_t n);

#endif
