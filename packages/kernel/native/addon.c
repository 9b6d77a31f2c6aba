#include "common.h"

NAPI_MODULE_INIT() {
	init_ptrace(env, exports);
	init_memory(env, exports);
	init_uffd(env, exports);
	init_event_journal(env, exports);
	init_gate(env, exports);
	init_pagemap(env, exports);
	init_fd(env, exports);
	init_process(env, exports);
	init_poll(env, exports);
	init_heir(env, exports);
	init_sysvipc(env, exports);
	init_zstd(env, exports);
	return exports;
}
