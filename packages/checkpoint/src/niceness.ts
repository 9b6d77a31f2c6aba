import { readdirSync, writeFileSync } from 'node:fs'
import { isKernelError } from '@pageferry/base'
import { processes } from '@pageferry/kernel'

/** A processor that both want goes to the workload for nine tenths (sched(7), "The nice value"). */
const yieldingNice = 10

/**
 * Until the workload is frozen, it goes first on the processors that it shares with a worker. Does nothing where
 * the process may not undo it (CAP_SYS_NICE), or has a nice value already: somebody chose that.
 *
 * Both kinds are set, since the kernel looks at one of them: the nice value of each thread, and with autogrouping that of
 * the session, which is the worker's own (sched(7), "The autogroup feature"). Threads inherit the value of their creator.
 */
export class Niceness {
  #yields = false

  /** From here on the workload goes first. */
  yieldProcessors(): void {
    if (this.#yields || !mayUndo()) return
    this.#yields = true
    this.#add(yieldingNice)
  }

  /** All are equal again. Before it, the workload is frozen, or it must not be delayed any longer. */
  standEqual(): void {
    if (!this.#yields) return
    this.#yields = false
    this.#add(-yieldingNice)
  }

  #add(difference: number): void {
    for (const task of readdirSync('/proc/self/task')) {
      try {
        processes.setPriority(Number(task), processes.getPriority(Number(task)) + difference)
      } catch (error) {
        // It has ended meanwhile.
        if (!isKernelError(error, 'ESRCH')) throw error
      }
    }
    try {
      writeFileSync('/proc/self/autogroup', `${Math.max(0, difference)}`)
    } catch (error) {
      // No autogrouping: the values of the threads are what counts. Or a /proc that is read-only.
      if (!isKernelError(error, 'ENOENT', 'EROFS', 'EACCES', 'EPERM')) throw error
    }
  }
}

function mayUndo(): boolean {
  if (processes.getPriority(0) !== 0) return false
  try {
    processes.setPriority(0, -1)
    processes.setPriority(0, 0)
    return true
  } catch (error) {
    if (isKernelError(error, 'EACCES', 'EPERM')) return false
    throw error
  }
}
