/*
 * ptrace(2) and the waits that belong to it. All requests for one tracee come from the OS thread that seized it.
 * Waiting is a polled waitpid. A blocking one could not have a timeout: a worker that hangs on a tracee in
 * uninterruptible sleep could not even report it.
 */
#include "common.h"

#include <elf.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>

#ifndef NT_X86_XSTATE
#define NT_X86_XSTATE 0x202
#endif

_Static_assert(sizeof(struct user_regs_struct) == 27 * 8, "x86_64 registers are 27 words");
_Static_assert(sizeof(siginfo_t) == 128, "a siginfo is 128 bytes");
_Static_assert(sizeof(struct __ptrace_rseq_configuration) == 24, "5.13's rseq configuration");
_Static_assert(PTRACE_GET_SYSCALL_INFO == 0x420e && PTRACE_GET_RSEQ_CONFIGURATION == 0x420f, "request numbers");

/* Linux 6.4; Debian 12's headers have neither the request nor the struct. */
#define PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG_ 0x4211
struct sud_config {
	uint64_t mode, selector, offset, length;
};

/* A stopped tracee answers within some ten microseconds. Spinning longer would only starve it. */
#define SPIN_NS 200000ll
#define SHORT_SLEEP_NS 20000l
/* After that the tracee is blocked in the kernel, and microseconds do not matter any more. */
#define SHORT_SLEEPS_NS 20000000ll
#define LONG_SLEEP_NS 500000l
/* AVX-512 and AMX together take 11 KiB. The kernel says how much it really filled. */
#define XSTATE_MAX 65536
#define PEEK_BATCH 32

/* Returns 0 with *status set, or an errno; ETIMEDOUT when nothing happened in time. */
static int wait_status(pid_t tid, double timeout_ms, int *status, pid_t *who)
{
	int64_t start = pf_now_ns(), spent;
	int64_t limit = timeout_ms > 9e12 ? INT64_MAX : (int64_t)(timeout_ms * 1e6);

	for (;;) {
		pid_t got = waitpid(tid, status, __WALL | WNOHANG);

		if (got > 0) {
			*who = got;
			return 0;
		}
		if (got < 0 && errno != EINTR)
			return errno;
		spent = pf_now_ns() - start;
		if (spent >= limit)
			return ETIMEDOUT;
		if (spent < SPIN_NS) {
			sched_yield();
		} else {
			struct timespec pause = { 0, spent < SHORT_SLEEPS_NS ? SHORT_SLEEP_NS : LONG_SLEEP_NS };
			nanosleep(&pause, NULL);
		}
	}
}

static void set_string(napi_env env, napi_value object, const char *name, const char *text)
{
	napi_value value;

	napi_create_string_utf8(env, text, NAPI_AUTO_LENGTH, &value);
	pf_set(env, object, name, value);
}

static napi_value status_object(napi_env env, int status)
{
	napi_value object, flag;

	napi_create_object(env, &object);
	if (WIFEXITED(status)) {
		set_string(env, object, "kind", "exited");
		pf_set_number(env, object, "code", WEXITSTATUS(status));
	} else if (WIFSIGNALED(status)) {
		set_string(env, object, "kind", "signaled");
		pf_set_number(env, object, "signal", WTERMSIG(status));
	} else {
		int sig = WSTOPSIG(status);
		bool syscall = sig == (SIGTRAP | 0x80);

		set_string(env, object, "kind", "stopped");
		pf_set_number(env, object, "signal", syscall ? SIGTRAP : sig);
		pf_set_number(env, object, "event", status >> 16);
		napi_get_boolean(env, syscall, &flag);
		pf_set(env, object, "syscall", flag);
	}
	return object;
}

/* Throws EINTR with the stop: the tracee did something else than it was told to. */
static napi_value throw_stop(napi_env env, const char *request, pid_t tid, int status)
{
	napi_value error;

	pf_throw(env, request, EINTR, tid);
	napi_get_and_clear_last_exception(env, &error);
	pf_set_number(env, error, "stopSignal", WIFSTOPPED(status) ? WSTOPSIG(status) & 0x7f : 0);
	pf_set_number(env, error, "stopEvent", WIFSTOPPED(status) ? status >> 16 : 0);
	pf_set(env, error, "status", status_object(env, status));
	napi_throw(env, error);
	return NULL;
}

static bool tid_arg(napi_env env, napi_callback_info info, size_t want, napi_value *argv, pid_t *tid)
{
	return pf_args(env, info, want, argv) && pf_int(env, argv[0], tid);
}

static long request(int number, pid_t tid, void *addr, void *data)
{
	return ptrace((enum __ptrace_request)number, tid, addr, data);
}

static napi_value seize(napi_env env, napi_callback_info info)
{
	napi_value argv[2];
	pid_t tid;
	int options;

	if (!tid_arg(env, info, 2, argv, &tid) || !pf_int(env, argv[1], &options))
		return NULL;
	if (request(PTRACE_SEIZE, tid, NULL, (void *)(long)options) < 0)
		return pf_throw(env, "ptrace(PTRACE_SEIZE)", errno, tid);
	return pf_undefined(env);
}

static napi_value interrupt(napi_env env, napi_callback_info info)
{
	napi_value argv[1];
	pid_t tid;

	if (!tid_arg(env, info, 1, argv, &tid))
		return NULL;
	if (request(PTRACE_INTERRUPT, tid, NULL, NULL) < 0)
		return pf_throw(env, "ptrace(PTRACE_INTERRUPT)", errno, tid);
	return pf_undefined(env);
}

static napi_value set_options(napi_env env, napi_callback_info info)
{
	napi_value argv[2];
	pid_t tid;
	int options;

	if (!tid_arg(env, info, 2, argv, &tid) || !pf_int(env, argv[1], &options))
		return NULL;
	if (request(PTRACE_SETOPTIONS, tid, NULL, (void *)(long)options) < 0)
		return pf_throw(env, "ptrace(PTRACE_SETOPTIONS)", errno, tid);
	return pf_undefined(env);
}

static napi_value detach(napi_env env, napi_callback_info info)
{
	napi_value argv[2];
	pid_t tid;
	int sig;

	if (!tid_arg(env, info, 2, argv, &tid) || !pf_int(env, argv[1], &sig))
		return NULL;
	if (request(PTRACE_DETACH, tid, NULL, (void *)(long)sig) < 0)
		return pf_throw(env, "ptrace(PTRACE_DETACH)", errno, tid);
	return pf_undefined(env);
}

static napi_value resume(napi_env env, napi_callback_info info)
{
	static const struct {
		const char *how, *name;
		int number;
	} requests[] = {
		{ "cont", "ptrace(PTRACE_CONT)", PTRACE_CONT },
		{ "syscall", "ptrace(PTRACE_SYSCALL)", PTRACE_SYSCALL },
		{ "listen", "ptrace(PTRACE_LISTEN)", PTRACE_LISTEN },
		{ "singlestep", "ptrace(PTRACE_SINGLESTEP)", PTRACE_SINGLESTEP },
	};
	napi_value argv[3];
	char how[16];
	pid_t tid;
	int sig;

	if (!tid_arg(env, info, 3, argv, &tid) || !pf_string(env, argv[1], how, sizeof(how)) ||
	    !pf_int(env, argv[2], &sig))
		return NULL;
	for (size_t i = 0; i < sizeof(requests) / sizeof(requests[0]); i++) {
		if (strcmp(how, requests[i].how) != 0)
			continue;
		if (request(requests[i].number, tid, NULL, (void *)(long)sig) < 0)
			return pf_throw(env, requests[i].name, errno, tid);
		return pf_undefined(env);
	}
	return pf_throw_type(env, "resume: unknown request");
}

static napi_value wait_one(napi_env env, napi_callback_info info)
{
	napi_value argv[2];
	double timeout_ms;
	pid_t tid, who;
	int status, err;

	if (!tid_arg(env, info, 2, argv, &tid) || !pf_double(env, argv[1], &timeout_ms))
		return NULL;
	err = wait_status(tid, timeout_ms, &status, &who);
	if (err != 0)
		return pf_throw(env, "waitpid", err, tid);
	return status_object(env, status);
}

static napi_value wait_any(napi_env env, napi_callback_info info)
{
	napi_value argv[1], result;
	double timeout_ms;
	pid_t who;
	int status, err;

	if (!pf_args(env, info, 1, argv) || !pf_double(env, argv[0], &timeout_ms))
		return NULL;
	err = wait_status(-1, timeout_ms, &status, &who);
	if (err == ETIMEDOUT) {
		napi_get_null(env, &result);
		return result;
	}
	if (err != 0)
		return pf_throw(env, "waitpid", err, 0);
	result = status_object(env, status);
	pf_set_number(env, result, "tid", who);
	return result;
}

/* One PTRACE_SYSCALL up to a syscall stop of the wanted kind. False with an exception pending. */
static bool to_syscall_stop(napi_env env, pid_t tid, double timeout_ms, int op,
			    struct __ptrace_syscall_info *stop)
{
	pid_t who;
	int status, err;

	if (request(PTRACE_SYSCALL, tid, NULL, NULL) < 0) {
		pf_throw(env, "ptrace(PTRACE_SYSCALL)", errno, tid);
		return false;
	}
	err = wait_status(tid, timeout_ms, &status, &who);
	if (err != 0) {
		pf_throw(env, "waitpid", err, tid);
		return false;
	}
	if (!WIFSTOPPED(status) || WSTOPSIG(status) != (SIGTRAP | 0x80)) {
		throw_stop(env, "ptrace(PTRACE_SYSCALL)", tid, status);
		return false;
	}
	if (request(PTRACE_GET_SYSCALL_INFO, tid, (void *)sizeof(*stop), stop) < 0) {
		pf_throw(env, "ptrace(PTRACE_GET_SYSCALL_INFO)", errno, tid);
		return false;
	}
	if (stop->op != op) {
		throw_stop(env, "ptrace(PTRACE_SYSCALL)", tid, status);
		return false;
	}
	return true;
}

static napi_value syscall_step(napi_env env, napi_callback_info info)
{
	struct __ptrace_syscall_info stop;
	napi_value argv[2], result, value;
	double timeout_ms;
	uint64_t nr;
	pid_t tid;

	if (!tid_arg(env, info, 2, argv, &tid) || !pf_double(env, argv[1], &timeout_ms))
		return NULL;
	if (!to_syscall_stop(env, tid, timeout_ms, PTRACE_SYSCALL_INFO_ENTRY, &stop))
		return NULL;
	nr = stop.entry.nr;
	if (!to_syscall_stop(env, tid, timeout_ms, PTRACE_SYSCALL_INFO_EXIT, &stop))
		return NULL;
	napi_create_object(env, &result);
	pf_set_number(env, result, "nr", (double)(int64_t)nr);
	napi_create_bigint_int64(env, stop.exit.rval, &value);
	pf_set(env, result, "result", value);
	return result;
}

static napi_value get_regs(napi_env env, napi_callback_info info)
{
	struct user_regs_struct *regs;
	struct iovec iov;
	napi_value argv[1], buffer, array;
	pid_t tid;

	if (!tid_arg(env, info, 1, argv, &tid))
		return NULL;
	napi_create_arraybuffer(env, sizeof(*regs), (void **)&regs, &buffer);
	iov.iov_base = regs;
	iov.iov_len = sizeof(*regs);
	if (request(PTRACE_GETREGSET, tid, (void *)NT_PRSTATUS, &iov) < 0)
		return pf_throw(env, "ptrace(PTRACE_GETREGSET)", errno, tid);
	/* A thread in 32-bit mode gives the shorter i386 set. Such a thread cannot be moved. */
	if (iov.iov_len != sizeof(*regs))
		return pf_throw(env, "ptrace(PTRACE_GETREGSET)", EOPNOTSUPP, tid);
	napi_create_typedarray(env, napi_biguint64_array, sizeof(*regs) / 8, buffer, 0, &array);
	return array;
}

static napi_value set_regs(napi_env env, napi_callback_info info)
{
	struct iovec iov;
	napi_value argv[2];
	pid_t tid;

	if (!tid_arg(env, info, 2, argv, &tid) || !pf_bytes(env, argv[1], &iov.iov_base, &iov.iov_len))
		return NULL;
	if (iov.iov_len != sizeof(struct user_regs_struct))
		return pf_throw_type(env, "setRegs: expected 27 words");
	if (request(PTRACE_SETREGSET, tid, (void *)NT_PRSTATUS, &iov) < 0)
		return pf_throw(env, "ptrace(PTRACE_SETREGSET)", errno, tid);
	return pf_undefined(env);
}

static napi_value get_xstate(napi_env env, napi_callback_info info)
{
	unsigned char area[XSTATE_MAX];
	struct iovec iov = { area, sizeof(area) };
	napi_value argv[1];
	pid_t tid;

	if (!tid_arg(env, info, 1, argv, &tid))
		return NULL;
	if (request(PTRACE_GETREGSET, tid, (void *)NT_X86_XSTATE, &iov) < 0)
		return pf_throw(env, "ptrace(PTRACE_GETREGSET, NT_X86_XSTATE)", errno, tid);
	return pf_new_bytes(env, area, iov.iov_len);
}

static napi_value set_xstate(napi_env env, napi_callback_info info)
{
	struct iovec iov;
	napi_value argv[2];
	pid_t tid;

	if (!tid_arg(env, info, 2, argv, &tid) || !pf_bytes(env, argv[1], &iov.iov_base, &iov.iov_len))
		return NULL;
	if (request(PTRACE_SETREGSET, tid, (void *)NT_X86_XSTATE, &iov) < 0)
		return pf_throw(env, "ptrace(PTRACE_SETREGSET, NT_X86_XSTATE)", errno, tid);
	return pf_undefined(env);
}

static napi_value get_sigmask(napi_env env, napi_callback_info info)
{
	napi_value argv[1];
	uint64_t mask = 0;
	pid_t tid;

	if (!tid_arg(env, info, 1, argv, &tid))
		return NULL;
	if (request(PTRACE_GETSIGMASK, tid, (void *)sizeof(mask), &mask) < 0)
		return pf_throw(env, "ptrace(PTRACE_GETSIGMASK)", errno, tid);
	return pf_bigint(env, mask);
}

static napi_value set_sigmask(napi_env env, napi_callback_info info)
{
	napi_value argv[2];
	uint64_t mask;
	pid_t tid;

	if (!tid_arg(env, info, 2, argv, &tid) || !pf_u64(env, argv[1], &mask))
		return NULL;
	if (request(PTRACE_SETSIGMASK, tid, (void *)sizeof(mask), &mask) < 0)
		return pf_throw(env, "ptrace(PTRACE_SETSIGMASK)", errno, tid);
	return pf_undefined(env);
}

static napi_value get_siginfo(napi_env env, napi_callback_info info)
{
	napi_value argv[1];
	siginfo_t siginfo;
	pid_t tid;

	if (!tid_arg(env, info, 1, argv, &tid))
		return NULL;
	if (request(PTRACE_GETSIGINFO, tid, NULL, &siginfo) < 0)
		return pf_throw(env, "ptrace(PTRACE_GETSIGINFO)", errno, tid);
	return pf_new_bytes(env, &siginfo, sizeof(siginfo));
}

static napi_value peek_siginfo(napi_env env, napi_callback_info info)
{
	siginfo_t batch[PEEK_BATCH];
	napi_value argv[2], list;
	uint32_t count = 0;
	pid_t tid;
	bool shared;

	if (!tid_arg(env, info, 2, argv, &tid) || !pf_bool(env, argv[1], &shared))
		return NULL;
	napi_create_array(env, &list);
	for (;;) {
		struct __ptrace_peeksiginfo_args args = {
			.off = count,
			.flags = shared ? PTRACE_PEEKSIGINFO_SHARED : 0,
			.nr = PEEK_BATCH,
		};
		long got = request(PTRACE_PEEKSIGINFO, tid, &args, batch);

		if (got < 0)
			return pf_throw(env, "ptrace(PTRACE_PEEKSIGINFO)", errno, tid);
		for (long i = 0; i < got; i++)
			napi_set_element(env, list, count++, pf_new_bytes(env, &batch[i], sizeof(batch[i])));
		if (got < PEEK_BATCH)
			return list;
	}
}

static napi_value get_rseq_configuration(napi_env env, napi_callback_info info)
{
	struct __ptrace_rseq_configuration rseq;
	napi_value argv[1], result;
	pid_t tid;

	if (!tid_arg(env, info, 1, argv, &tid))
		return NULL;
	if (request(PTRACE_GET_RSEQ_CONFIGURATION, tid, (void *)sizeof(rseq), &rseq) < 0)
		return pf_throw(env, "ptrace(PTRACE_GET_RSEQ_CONFIGURATION)", errno, tid);
	napi_create_object(env, &result);
	pf_set(env, result, "address", pf_bigint(env, rseq.rseq_abi_pointer));
	pf_set_number(env, result, "size", rseq.rseq_abi_size);
	pf_set_number(env, result, "signature", rseq.signature);
	pf_set_number(env, result, "flags", rseq.flags);
	return result;
}

static napi_value get_user_dispatch(napi_env env, napi_callback_info info)
{
	struct sud_config config = { 0 };
	napi_value argv[1];
	pid_t tid;

	if (!tid_arg(env, info, 1, argv, &tid))
		return NULL;
	if (request(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG_, tid, (void *)sizeof(config), &config) < 0)
		return pf_throw(env, "ptrace(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG)", errno, tid);
	return pf_number(env, config.mode);
}

static napi_value get_event_message(napi_env env, napi_callback_info info)
{
	napi_value argv[1];
	unsigned long message;
	pid_t tid;

	if (!tid_arg(env, info, 1, argv, &tid))
		return NULL;
	if (request(PTRACE_GETEVENTMSG, tid, NULL, &message) < 0)
		return pf_throw(env, "ptrace(PTRACE_GETEVENTMSG)", errno, tid);
	return pf_bigint(env, message);
}

static napi_value run_to_trap(napi_env env, napi_callback_info info)
{
	napi_value argv[2];
	double timeout_ms;
	pid_t tid, who;
	int status, err;

	if (!tid_arg(env, info, 2, argv, &tid) || !pf_double(env, argv[1], &timeout_ms))
		return NULL;
	if (request(PTRACE_CONT, tid, NULL, NULL) < 0)
		return pf_throw(env, "ptrace(PTRACE_CONT)", errno, tid);
	err = wait_status(tid, timeout_ms, &status, &who);
	if (err != 0)
		return pf_throw(env, "waitpid", err, tid);
	if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP || status >> 16 != 0)
		return throw_stop(env, "ptrace(PTRACE_CONT)", tid, status);
	return pf_undefined(env);
}

void init_ptrace(napi_env env, napi_value exports)
{
	napi_value object;

	napi_create_object(env, &object);
	pf_export(env, object, "seize", seize);
	pf_export(env, object, "interrupt", interrupt);
	pf_export(env, object, "setOptions", set_options);
	pf_export(env, object, "detach", detach);
	pf_export(env, object, "resume", resume);
	pf_export(env, object, "wait", wait_one);
	pf_export(env, object, "waitAny", wait_any);
	pf_export(env, object, "syscallStep", syscall_step);
	pf_export(env, object, "getRegs", get_regs);
	pf_export(env, object, "setRegs", set_regs);
	pf_export(env, object, "getXstate", get_xstate);
	pf_export(env, object, "setXstate", set_xstate);
	pf_export(env, object, "getSigmask", get_sigmask);
	pf_export(env, object, "setSigmask", set_sigmask);
	pf_export(env, object, "getSiginfo", get_siginfo);
	pf_export(env, object, "peekSiginfo", peek_siginfo);
	pf_export(env, object, "getRseqConfiguration", get_rseq_configuration);
	pf_export(env, object, "getUserDispatch", get_user_dispatch);
	pf_export(env, object, "getEventMessage", get_event_message);
	pf_export(env, object, "runToTrap", run_to_trap);
	pf_set(env, exports, "ptrace", object);
}
