import { readFileSync } from 'node:fs'

/** /proc/PID/task/TID/comm, up to 15 bytes (TASK_COMM_LEN). Not text: prctl(PR_SET_NAME) cuts within characters. */
export function readComm(pid: number, tid: number): Uint8Array {
  return readFileSync(`/proc/${pid}/task/${tid}/comm`).subarray(0, -1)
}
