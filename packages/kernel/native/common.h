/*
 * Shared by every file of the addon: argument access and errors.
 *
 * Conventions: one C file per kernel facility with one `init_<facility>(env, exports)`; functions take and
 * return plain data (numbers, BigInts, typed arrays); a failed system call throws an Error with the properties
 * code ("EPERM"), errno (positive number), syscall ("ptrace(PTRACE_SEIZE)") and, where there is one, pid.
 * No state lives in static variables: the addon loads in worker threads too.
 */
#ifndef PAGEFERRY_COMMON_H
#define PAGEFERRY_COMMON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define NAPI_VERSION 8
#include <errno.h>
#include <node_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PF_PAGE 4096ul

/* Throws the error described above and returns NULL, so that callers write `return pf_throw(...)`. */
napi_value pf_throw(napi_env env, const char *syscall, int err, pid_t pid);
/* Throws a TypeError for a wrong argument: a defect in our own TypeScript, which users cannot cause. */
napi_value pf_throw_type(napi_env env, const char *message);

/* Argument readers; each returns false with an exception pending. */
bool pf_args(napi_env env, napi_callback_info info, size_t want, napi_value *argv);
bool pf_int(napi_env env, napi_value v, int *out);
bool pf_double(napi_env env, napi_value v, double *out);
bool pf_u64(napi_env env, napi_value v, uint64_t *out); /* BigInt or non-negative number */
bool pf_bool(napi_env env, napi_value v, bool *out);
bool pf_string(napi_env env, napi_value v, char *out, size_t size); /* ENAMETOOLONG as TypeError */
/* Any typed array or Buffer: its first byte and its length in bytes. */
bool pf_bytes(napi_env env, napi_value v, void **data, size_t *length);

napi_value pf_number(napi_env env, double v);
napi_value pf_bigint(napi_env env, uint64_t v);
napi_value pf_undefined(napi_env env);
/* A new Uint8Array holding a copy of the bytes. */
napi_value pf_new_bytes(napi_env env, const void *data, size_t length);
void pf_set(napi_env env, napi_value object, const char *name, napi_value value);
void pf_set_number(napi_env env, napi_value object, const char *name, double value);
void pf_export(napi_env env, napi_value exports, const char *name, napi_callback fn);

/* CLOCK_MONOTONIC */
int64_t pf_now_ns(void);

/* One entry of a run table as it comes from JavaScript: a Float64Array of [firstPage, nrPages] pairs. */
struct pf_run {
	double first_page;
	double nr_pages;
};
_Static_assert(sizeof(struct pf_run) == 16, "a run is two doubles");
/* Reads a run table and the number of its runs that count; `pages` is the number of pages that they name. */
bool pf_runs(napi_env env, napi_value table, napi_value count, struct pf_run **runs, size_t *nr, uint64_t *pages);

void init_ptrace(napi_env env, napi_value exports);
void init_memory(napi_env env, napi_value exports);
void init_uffd(napi_env env, napi_value exports);
void init_event_journal(napi_env env, napi_value exports);
void init_gate(napi_env env, napi_value exports);
void init_pagemap(napi_env env, napi_value exports);
void init_fd(napi_env env, napi_value exports);
void init_process(napi_env env, napi_value exports);
void init_poll(napi_env env, napi_value exports);
void init_heir(napi_env env, napi_value exports);
void init_sysvipc(napi_env env, napi_value exports);
void init_zstd(napi_env env, napi_value exports);

#endif
