/* Attributes of a process as a whole: limits, scheduling, sessions, clocks, and the size of the CPU state. */
#include "common.h"

#include <cpuid.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* linux/ioprio.h is not in Debian 12's headers in a usable form. */
#define IOPRIO_WHO_PROCESS 1
/* NR_CPUS may be 8192; the kernel refuses a shorter buffer. */
#define CPU_MASK_BYTES 1024
/* Size of struct sched_attr since Linux 5.3. */
#define SCHED_ATTR_BYTES 56

_Static_assert(sizeof(rlim_t) == 8, "limits are 64-bit");

static bool int_args(napi_env env, napi_callback_info info, size_t want, int *out)
{
	napi_value argv[4];

	if (!pf_args(env, info, want, argv))
		return false;
	for (size_t i = 0; i < want; i++) {
		if (!pf_int(env, argv[i], &out[i]))
			return false;
	}
	return true;
}

static napi_value proc_prlimit(napi_env env, napi_callback_info info)
{
	struct rlimit old, new;
	napi_valuetype type;
	napi_value argv[4], result;
	int pid, resource;
	bool change;

	if (!pf_args(env, info, 4, argv) || !pf_int(env, argv[0], &pid) || !pf_int(env, argv[1], &resource))
		return NULL;
	napi_typeof(env, argv[2], &type);
	change = type != napi_undefined;
	if (change && (!pf_u64(env, argv[2], &new.rlim_cur) || !pf_u64(env, argv[3], &new.rlim_max)))
		return NULL;
	if (prlimit(pid, (enum __rlimit_resource)resource, change ? &new : NULL, &old) < 0)
		return pf_throw(env, "prlimit", errno, pid);
	napi_create_object(env, &result);
	pf_set(env, result, "soft", pf_bigint(env, old.rlim_cur));
	pf_set(env, result, "hard", pf_bigint(env, old.rlim_max));
	return result;
}

static napi_value get_priority(napi_env env, napi_callback_info info)
{
	int tid, nice;

	if (!int_args(env, info, 1, &tid))
		return NULL;
	errno = 0; /* -1 is a valid answer */
	nice = getpriority(PRIO_PROCESS, tid);
	if (errno != 0)
		return pf_throw(env, "getpriority", errno, tid);
	return pf_number(env, nice);
}

static napi_value set_priority(napi_env env, napi_callback_info info)
{
	int arg[2];

	if (!int_args(env, info, 2, arg))
		return NULL;
	if (setpriority(PRIO_PROCESS, arg[0], arg[1]) < 0)
		return pf_throw(env, "setpriority", errno, arg[0]);
	return pf_undefined(env);
}

/* Uses the system calls themselves: glibc hides the length of the kernel's mask. */
static napi_value get_affinity(napi_env env, napi_callback_info info)
{
	unsigned char mask[CPU_MASK_BYTES];
	long length;
	int tid;

	if (!int_args(env, info, 1, &tid))
		return NULL;
	length = syscall(SYS_sched_getaffinity, tid, sizeof(mask), mask);
	if (length < 0)
		return pf_throw(env, "sched_getaffinity", errno, tid);
	return pf_new_bytes(env, mask, length);
}

static napi_value set_affinity(napi_env env, napi_callback_info info)
{
	napi_value argv[2];
	size_t length;
	void *mask;
	int tid;

	if (!pf_args(env, info, 2, argv) || !pf_int(env, argv[0], &tid) ||
	    !pf_bytes(env, argv[1], &mask, &length))
		return NULL;
	if (syscall(SYS_sched_setaffinity, tid, length, mask) < 0)
		return pf_throw(env, "sched_setaffinity", errno, tid);
	return pf_undefined(env);
}

static napi_value get_scheduler(napi_env env, napi_callback_info info)
{
	struct sched_param param;
	napi_value result;
	int tid, policy;

	if (!int_args(env, info, 1, &tid))
		return NULL;
	policy = sched_getscheduler(tid);
	if (policy < 0)
		return pf_throw(env, "sched_getscheduler", errno, tid);
	if (sched_getparam(tid, &param) < 0)
		return pf_throw(env, "sched_getparam", errno, tid);
	napi_create_object(env, &result);
	pf_set_number(env, result, "policy", policy);
	pf_set_number(env, result, "priority", param.sched_priority);
	return result;
}

static napi_value set_scheduler(napi_env env, napi_callback_info info)
{
	struct sched_param param = { 0 };
	int arg[3];

	if (!int_args(env, info, 3, arg))
		return NULL;
	param.sched_priority = arg[2];
	if (sched_setscheduler(arg[0], arg[1], &param) < 0)
		return pf_throw(env, "sched_setscheduler", errno, arg[0]);
	return pf_undefined(env);
}

/* Passes the struct as it is (linux/sched/types.h). glibc has no wrapper before 2.41. */
static napi_value sched_get_attr(napi_env env, napi_callback_info info)
{
	unsigned char attr[SCHED_ATTR_BYTES] = { 0 };
	int tid;

	if (!int_args(env, info, 1, &tid))
		return NULL;
	if (syscall(SYS_sched_getattr, tid, attr, sizeof(attr), 0) < 0)
		return pf_throw(env, "sched_getattr", errno, tid);
	return pf_new_bytes(env, attr, sizeof(attr));
}

static napi_value sched_set_attr(napi_env env, napi_callback_info info)
{
	napi_value argv[2];
	size_t length;
	void *attr;
	int tid;

	if (!pf_args(env, info, 2, argv) || !pf_int(env, argv[0], &tid) || !pf_bytes(env, argv[1], &attr, &length))
		return NULL;
	if (length != SCHED_ATTR_BYTES)
		return pf_throw_type(env, "a sched_attr has 56 bytes");
	if (syscall(SYS_sched_setattr, tid, attr, 0) < 0)
		return pf_throw(env, "sched_setattr", errno, tid);
	return pf_undefined(env);
}

static napi_value get_ioprio(napi_env env, napi_callback_info info)
{
	int tid;
	long prio;

	if (!int_args(env, info, 1, &tid))
		return NULL;
	prio = syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid);
	if (prio < 0)
		return pf_throw(env, "ioprio_get", errno, tid);
	return pf_number(env, prio);
}

static napi_value set_ioprio(napi_env env, napi_callback_info info)
{
	int arg[2];

	if (!int_args(env, info, 2, arg))
		return NULL;
	if (syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, arg[0], arg[1]) < 0)
		return pf_throw(env, "ioprio_set", errno, arg[0]);
	return pf_undefined(env);
}

static napi_value proc_getsid(napi_env env, napi_callback_info info)
{
	int pid, sid;

	if (!int_args(env, info, 1, &pid))
		return NULL;
	sid = getsid(pid);
	return sid < 0 ? pf_throw(env, "getsid", errno, pid) : pf_number(env, sid);
}

static napi_value proc_getpgid(napi_env env, napi_callback_info info)
{
	int pid, pgid;

	if (!int_args(env, info, 1, &pid))
		return NULL;
	pgid = getpgid(pid);
	return pgid < 0 ? pf_throw(env, "getpgid", errno, pid) : pf_number(env, pgid);
}

static napi_value proc_clock_gettime(napi_env env, napi_callback_info info)
{
	struct timespec time;
	napi_value result;
	int id;

	if (!int_args(env, info, 1, &id))
		return NULL;
	if (clock_gettime(id, &time) < 0)
		return pf_throw(env, "clock_gettime", errno, 0);
	napi_create_bigint_int64(env, time.tv_sec * 1000000000ll + time.tv_nsec, &result);
	return result;
}

static napi_value proc_tgkill(napi_env env, napi_callback_info info)
{
	int arg[3];

	if (!int_args(env, info, 3, arg))
		return NULL;
	if (syscall(SYS_tgkill, arg[0], arg[1], arg[2]) < 0)
		return pf_throw(env, "tgkill", errno, arg[1]);
	return pf_undefined(env);
}

/* CPUID leaf 0xd, subleaf 0: EBX is the size of the XSAVE area for the features that XCR0 enables (SDM vol. 1, 13.2). */
static napi_value cpu_xfeatures(napi_env env, napi_callback_info info)
{
	unsigned int eax, ebx, ecx, edx;
	uint64_t xcr0 = 0;
	unsigned int size = 0;
	napi_value result;

	if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_OSXSAVE) != 0) {
		__asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
		xcr0 = (uint64_t)edx << 32 | eax;
		if (__get_cpuid_count(0xd, 0, &eax, &ebx, &ecx, &edx))
			size = ebx;
	}
	napi_create_object(env, &result);
	pf_set(env, result, "xcr0", pf_bigint(env, xcr0));
	pf_set_number(env, result, "size", size);
	return result;
}

void init_process(napi_env env, napi_value exports)
{
	napi_value object;

	napi_create_object(env, &object);
	pf_export(env, object, "prlimit", proc_prlimit);
	pf_export(env, object, "getPriority", get_priority);
	pf_export(env, object, "setPriority", set_priority);
	pf_export(env, object, "getAffinity", get_affinity);
	pf_export(env, object, "setAffinity", set_affinity);
	pf_export(env, object, "getScheduler", get_scheduler);
	pf_export(env, object, "setScheduler", set_scheduler);
	pf_export(env, object, "schedGetattr", sched_get_attr);
	pf_export(env, object, "schedSetattr", sched_set_attr);
	pf_export(env, object, "getIoprio", get_ioprio);
	pf_export(env, object, "setIoprio", set_ioprio);
	pf_export(env, object, "getsid", proc_getsid);
	pf_export(env, object, "getpgid", proc_getpgid);
	pf_export(env, object, "clockGettime", proc_clock_gettime);
	pf_export(env, object, "tgkill", proc_tgkill);
	pf_export(env, object, "cpuXfeatures", cpu_xfeatures);
	pf_set(env, exports, "processes", object);
}
