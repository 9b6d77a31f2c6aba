import { PageferryError } from '@pageferry/base'
import { Bystander } from '@pageferry/kernel'
import { type Asker, askProcessRefusals, askThreadRefusals } from './kinds/attributes/refused.js'
import { groupProblems, type Problem, type ProblemGroup } from './problems.js'
import type { ProcStatus } from './proc/status.js'
import { readStatus } from './proc/status.js'
import { readTids } from './proc/tasks.js'
import { StoppedProcess } from './remote/stopped-process.js'
import type { WorkloadThread } from './remote/workload-thread.js'

/** One bystander for each user and group that threads of a process have. They end with this process. */
export class Bystanders {
  readonly #all = new Map<string, Bystander>()

  /** Starts those that the threads need now. */
  async add(pid: number): Promise<void> {
    for (const tid of readTids(pid)) {
      const status = statusIfThere(pid, tid)
      if (status === null || this.pidFor(status) !== undefined) continue
      const [[uid], [gid]] = [status.uids, status.gids]
      this.#all.set(keyOf(status), await Bystander.start(uid, gid))
    }
  }

  /** Undefined for a user that no thread had. */
  pidFor(status: Pick<ProcStatus, 'uids' | 'gids'>): number | undefined {
    return this.#all.get(keyOf(status))?.pid
  }

  end(): void {
    for (const bystander of this.#all.values()) bystander.end()
    this.#all.clear()
  }
}

/** The kernel compares the real ids (ptrace(2), PTRACE_MODE_REALCREDS). */
function keyOf({ uids, gids }: Pick<ProcStatus, 'uids' | 'gids'>): string {
  return `${uids[0]}:${gids[0]}`
}

function statusIfThere(pid: number, tid: number): ProcStatus | null {
  try {
    return readStatus(pid, tid)
  } catch {
    return null
  }
}

/**
 * Asks the process itself: it stops for a moment, and each thread makes a call or two. To be used after `preflight` has found
 * nothing: a process with a filter of system calls would notice.
 */
export function probe(pid: number, bystanders: Bystanders): Problem[] {
  let stopped: StoppedProcess
  try {
    stopped = StoppedProcess.stop(pid, 'all')
  } catch (error) {
    if (!(error instanceof PageferryError) || error.code !== 'REFUSED') throw error
    return [{ what: `process ${pid}`, reason: error.message }]
  }
  try {
    return [
      ...askProcessRefusals(oneByOne(stopped.leader), pid)(),
      ...stopped.threads.flatMap((thread) => {
        const bystander = bystanders.pidFor(thread.status)
        // The thread is new, or has changed its user just now. The freeze asks again.
        return bystander === undefined ? [] : askThreadRefusals(oneByOne(thread), thread.tid, bystander)()
      }),
    ]
  } finally {
    stopped.resume()
  }
}

function oneByOne(thread: WorkloadThread): Asker {
  return {
    tryAdd(name, ...args) {
      const result = thread.tryCall(name, ...args)
      return () => result
    },
  }
}

/** Does the same for a caller that does not move the process. */
export async function checkFromInside(pid: number): Promise<ProblemGroup[]> {
  const bystanders = new Bystanders()
  try {
    await bystanders.add(pid)
    return groupProblems(probe(pid, bystanders))
  } finally {
    bystanders.end()
  }
}
