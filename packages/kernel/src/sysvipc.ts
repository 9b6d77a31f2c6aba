/** System V semaphores (sysvipc(7)). */
import { addon } from './addon.js'

interface Native {
  semaphorePid(id: number, number: number): number
}

const native = addon.sysvipc as Native

/**
 * The process that was the last to use semaphore `number` of set `id` (semctl(2), GETPID), in our pid namespace; 0: none.
 * EINVAL or EIDRM: there is no such set.
 */
export function semaphorePid(id: number, number: number): number {
  return native.semaphorePid(id, number)
}
