/* Events of userfaultfd(2), as uffd.c and event-journal.c read them. */
#ifndef PAGEFERRY_UFFD_EVENTS_H
#define PAGEFERRY_UFFD_EVENTS_H

#include "common.h"

#include <linux/userfaultfd.h>

/* Events read by one call; 64 messages of 32 bytes are half a page of stack. */
#define UFFD_MAX_EVENTS 64

/* Makes an array of events as src/uffd.ts describes them; NULL with an exception for an unknown one. */
napi_value pf_uffd_events(napi_env env, const struct uffd_msg *msgs, uint64_t n);

#endif
