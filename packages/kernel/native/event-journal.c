/*
 * The event journal: a file of shared memory (a memfd) into which events are read directly. An event that was read and
 * forgotten never comes again. The file has every event up to the last instruction of a killed reader:
 *
 *   0     struct journal
 *   2048  staging: the result of one read(2). All zeros before it, so a record that is not zero was read.
 *   4096  log: the events that change the address space, in order. Page faults are not kept: after UFFDIO_WAKE
 *         they are raised again.
 *
 * `state` is one word, so that it changes at once: events in the log << 8 | records of staging that were handled. The
 * log is written before the state says so; staging is cleared before the state says that it is empty. The descriptor of
 * a fork event is in the reader's table and is closed with it, unless the reader has an heir (heir.c).
 */
#include "common.h"
#include "gate.h"
#include "uffd-events.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define JOURNAL_MAGIC 0x31746e6576656670ull /* "pfevent1" */
#define JOURNAL_STAGING 2048
#define JOURNAL_LOG 4096

struct journal {
	uint64_t magic;
	uint64_t state;
	uint64_t capacity; /* events that the log has room for */
};
_Static_assert(JOURNAL_STAGING + UFFD_MAX_EVENTS * sizeof(struct uffd_msg) == JOURNAL_LOG, "staging fits its page");

struct open_journal {
	struct journal *head;
	struct uffd_msg *staging, *log;
};

static bool open_journal(napi_env env, napi_value area, struct open_journal *j)
{
	size_t length;
	void *data;

	if (!pf_bytes(env, area, &data, &length))
		return false;
	j->head = data;
	if (length < JOURNAL_LOG || ((uintptr_t)data & 7) || j->head->magic != JOURNAL_MAGIC ||
	    j->head->capacity > (length - JOURNAL_LOG) / sizeof(struct uffd_msg) ||
	    j->head->state >> 8 > j->head->capacity || (j->head->state & 0xff) > UFFD_MAX_EVENTS) {
		pf_throw_type(env, "this is no event journal");
		return false;
	}
	j->staging = (void *)((uint8_t *)data + JOURNAL_STAGING);
	j->log = (void *)((uint8_t *)data + JOURNAL_LOG);
	return true;
}

/* A store that the compiler neither moves nor splits. Other CPUs do not matter: a reader of the state finds us dead. */
static void set_state(struct open_journal *j, uint64_t count, uint64_t staged)
{
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	__atomic_store_n(&j->head->state, count << 8 | staged, __ATOMIC_RELEASE);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/* Moves the records of staging into the log. The caller has made sure that there is room. */
static void settle_staging(struct open_journal *j)
{
	uint64_t count = j->head->state >> 8, staged = j->head->state & 0xff;

	for (; staged < UFFD_MAX_EVENTS && j->staging[staged].event != 0; staged++) {
		if (j->staging[staged].event == UFFD_EVENT_PAGEFAULT)
			continue;
		j->log[count] = j->staging[staged];
		set_state(j, ++count, staged + 1);
	}
	/* Faults at the end: clear their records only after the state counts them, or they could be taken for new ones. */
	set_state(j, count, UFFD_MAX_EVENTS);
	memset(j->staging, 0, UFFD_MAX_EVENTS * sizeof(struct uffd_msg));
	set_state(j, count, 0);
}

/* (area, capacity) of a file that is all zeros */
static napi_value journal_format(napi_env env, napi_callback_info info)
{
	napi_value argv[2];
	struct journal *head;
	uint64_t capacity;
	size_t length;
	void *data;

	if (!pf_args(env, info, 2, argv) || !pf_bytes(env, argv[0], &data, &length) ||
	    !pf_u64(env, argv[1], &capacity))
		return NULL;
	if (length < JOURNAL_LOG || ((uintptr_t)data & 7) ||
	    capacity > (length - JOURNAL_LOG) / sizeof(struct uffd_msg))
		return pf_throw_type(env, "the journal has no room for its log");
	head = data;
	head->capacity = capacity;
	head->state = 0;
	__atomic_store_n(&head->magic, JOURNAL_MAGIC, __ATOMIC_RELEASE);
	return pf_undefined(env);
}

/* (fd, area, gate or undefined): the events of one read; changes go into the log, and the gate closes for them */
static napi_value journal_read(napi_env env, napi_callback_info info)
{
	napi_value argv[3];
	struct gate *gate;
	struct uffd_msg msgs[UFFD_MAX_EVENTS];
	struct open_journal j;
	uint64_t room;
	int fd, flags, err;
	ssize_t n;

	if (!pf_args(env, info, 3, argv) || !pf_int(env, argv[0], &fd) || !open_journal(env, argv[1], &j) ||
	    !gate_arg(env, argv[2], &gate))
		return NULL;
	flags = fcntl(fd, F_GETFL);
	if (flags < 0)
		return pf_throw(env, "fcntl(F_GETFL)", errno, 0);
	if (!(flags & O_NONBLOCK))
		return pf_throw_type(env, "the userfaultfd is not O_NONBLOCK");
	room = j.head->capacity - (j.head->state >> 8);
	if (room > UFFD_MAX_EVENTS)
		room = UFFD_MAX_EVENTS;
	if (room == 0)
		return pf_throw(env, "read(userfaultfd)", ENOSPC, 0);
	/* Also makes the pages present. A fault inside the read could be aborted by a kill, and the event would be lost. */
	settle_staging(&j);
	gate_lock(gate);
	do
		n = read(fd, j.staging, room * sizeof(struct uffd_msg));
	while (n < 0 && errno == EINTR);
	err = errno;
	if (n > 0)
		gate_note(gate, j.staging, (size_t)n / sizeof(struct uffd_msg));
	gate_unlock(gate);
	if (n < 0 && err == EAGAIN)
		n = 0;
	if (n < 0)
		return pf_throw(env, "read(userfaultfd)", err, 0);
	memcpy(msgs, j.staging, (size_t)n);
	settle_staging(&j);
	return pf_uffd_events(env, msgs, (uint64_t)n / sizeof(struct uffd_msg));
}

static const struct {
	const char *name;
	uint8_t event;
} change_types[] = {
	{ "remap", UFFD_EVENT_REMAP },
	{ "remove", UFFD_EVENT_REMOVE },
	{ "unmap", UFFD_EVENT_UNMAP },
};

/* (area, type, from, to, length) of a REMAP, or (area, type, start, end, 0): a change that was read into another
 * journal */
static napi_value journal_append(napi_env env, napi_callback_info info)
{
	struct uffd_msg msg = { 0 };
	napi_value argv[5];
	struct open_journal j;
	uint64_t words[3], count;
	char type[8];

	if (!pf_args(env, info, 5, argv) || !open_journal(env, argv[0], &j) ||
	    !pf_string(env, argv[1], type, sizeof(type)))
		return NULL;
	for (size_t i = 0; i < 3; i++)
		if (!pf_u64(env, argv[i + 2], &words[i]))
			return NULL;
	for (size_t i = 0; i < sizeof(change_types) / sizeof(change_types[0]); i++)
		if (strcmp(type, change_types[i].name) == 0)
			msg.event = change_types[i].event;
	if (msg.event == 0)
		return pf_throw_type(env, "no event that changes an address space");
	count = j.head->state >> 8;
	/* Staged events were read after the log, and must stay behind it. */
	if (j.staging[0].event != 0)
		return pf_throw_type(env, "events were read into the journal already");
	if (count == j.head->capacity)
		return pf_throw(env, "append to the event journal", ENOSPC, 0);
	if (msg.event == UFFD_EVENT_REMAP) {
		msg.arg.remap.from = words[0];
		msg.arg.remap.to = words[1];
		msg.arg.remap.len = words[2];
	} else {
		msg.arg.remove.start = words[0];
		msg.arg.remove.end = words[1];
	}
	j.log[count] = msg;
	set_state(&j, count + 1, 0);
	return pf_undefined(env);
}

/* (area): number of events in the log */
static napi_value journal_count(napi_env env, napi_callback_info info)
{
	napi_value argv[1];
	struct open_journal j;

	if (!pf_args(env, info, 1, argv) || !open_journal(env, argv[0], &j))
		return NULL;
	return pf_number(env, (double)(j.head->state >> 8));
}

/* (area): every event of the log, including the events that a dead reader left in staging */
static napi_value journal_events(napi_env env, napi_callback_info info)
{
	napi_value argv[1];
	struct open_journal j;

	if (!pf_args(env, info, 1, argv) || !open_journal(env, argv[0], &j))
		return NULL;
	settle_staging(&j);
	return pf_uffd_events(env, j.log, j.head->state >> 8);
}

void init_event_journal(napi_env env, napi_value exports)
{
	napi_value journal;

	napi_create_object(env, &journal);
	pf_set(env, exports, "eventJournal", journal);
	pf_export(env, journal, "format", journal_format);
	pf_export(env, journal, "read", journal_read);
	pf_export(env, journal, "append", journal_append);
	pf_export(env, journal, "count", journal_count);
	pf_export(env, journal, "events", journal_events);
}
