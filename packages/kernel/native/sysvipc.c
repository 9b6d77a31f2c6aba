/* Users of System V semaphores. /proc/sysvipc/sem does not show them, unlike the files of queues and shared memory. */
#include "common.h"

#include <sys/sem.h>

static napi_value semaphore_pid(napi_env env, napi_callback_info info)
{
	napi_value argv[2];
	int id, number, pid;

	if (!pf_args(env, info, 2, argv) || !pf_int(env, argv[0], &id) || !pf_int(env, argv[1], &number))
		return NULL;
	pid = semctl(id, number, GETPID);
	return pid < 0 ? pf_throw(env, "semctl", errno, 0) : pf_number(env, pid);
}

void init_sysvipc(napi_env env, napi_value exports)
{
	napi_value object;

	napi_create_object(env, &object);
	pf_export(env, object, "semaphorePid", semaphore_pid);
	pf_set(env, exports, "sysvipc", object);
}
