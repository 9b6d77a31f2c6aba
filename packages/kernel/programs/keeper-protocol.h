/*
 * The protocol of DIR/keeper.sock (SOCK_SEQPACKET): one request, one reply, each one message, native byte order. A
 * keeper lives as long as its workload and may serve a worker of a newer version. So the layouts and numbers here are
 * frozen; src/keeper.ts mirrors them. 0 is never a valid number.
 *
 *   request            descriptors sent        reply (beyond err)          descriptors received
 *   SPAWN pid, flags   socket [, cgroup]       pid                         pidfd
 *   HOLD name          the one to hold
 *   FETCH name                                                             a duplicate
 *   LIST                                       count, then count names
 *   DROP name
 *   STATUS                                     state, value, pid
 *   KILL
 *   QUIT
 *   CHILD                                      pid                         pidfd
 */
#ifndef PAGEFERRY_KEEPER_PROTOCOL_H
#define PAGEFERRY_KEEPER_PROTOCOL_H

#include <stdint.h>

#define KEEPER_VERSION 1
#define KEEPER_SOCKET "keeper.sock"
/* "exited N" or "signaled N" and a newline; written with rename when the child of SPAWN has ended. */
#define KEEPER_STATUS_FILE "exit-status"

/* userfaultfds, event journals and a few more. This is far below any descriptor limit. */
#define KEEPER_MAX_HELD 512
#define KEEPER_NAME_BYTES 64 /* with the terminating 0 */

enum keeper_op {
	/*
	 * Makes the one child, with the pid given (0: any) in the keeper's pid namespace. Descriptor 3 of the
	 * child is the socket. EEXIST: that pid is taken. EALREADY: there is or was a child.
	 */
	KEEPER_SPAWN = 1,
	KEEPER_HOLD = 2, /* replaces the descriptor of that name; ENOSPC when full */
	KEEPER_FETCH = 3, /* ENOENT */
	KEEPER_LIST = 4,
	KEEPER_DROP = 5, /* ENOENT */
	KEEPER_STATUS = 6,
	KEEPER_KILL = 7, /* SIGKILL to the child and all its descendants; no error if there is none */
	KEEPER_QUIT = 8, /* EBUSY while there is any child */
	KEEPER_CHILD = 9, /* the reply of SPAWN again, for a successor; ECHILD if it does not run */
};

#define KEEPER_SPAWN_CGROUP 1u /* second descriptor: directory of a v2 cgroup to be born in */

enum keeper_state {
	KEEPER_NONE = 1,
	KEEPER_RUNNING = 2,
	KEEPER_EXITED = 3, /* value: exit code */
	KEEPER_SIGNALED = 4, /* value: signal number */
};

struct keeper_request {
	uint32_t version; /* EPROTO if the keeper speaks another one */
	uint32_t op;
	int32_t pid;
	uint32_t flags;
	char name[KEEPER_NAME_BYTES];
};

struct keeper_reply {
	uint32_t version;
	uint32_t op;
	int32_t err; /* 0 or errno; with an error the other fields mean nothing */
	int32_t pid; /* in the keeper's pid namespace; pidfds translate it */
	uint32_t state;
	int32_t value;
	uint32_t count;
	uint32_t reserved;
};

_Static_assert(sizeof(struct keeper_request) == 80, "frozen");
_Static_assert(sizeof(struct keeper_reply) == 32, "frozen");

#endif
