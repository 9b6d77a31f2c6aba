import { closeSync, existsSync, openSync, readFileSync, readlinkSync, readSync } from 'node:fs'
import { PageferryError, pageBytes } from '@pageferry/base'
import { fds } from '@pageferry/kernel'
import { requireAreaCount } from '@pageferry/pages'
import { Freezer, frozenIn } from './freezer.js'
import { checkAttributes } from './kinds/attributes/refused.js'
import { checkDescriptors } from './kinds/descriptors/check.js'
import { checkFs } from './kinds/fs.js'
import { checkGhosts, defaultGhostBytes } from './kinds/ghosts/check.js'
import { checkMappedPaths } from './kinds/memory-map/paths.js'
import { dumpMemoryMap } from './kinds/memory-map/read.js'
import { checkTimers } from './kinds/timers.js'
import { checkOutside } from './outside.js'
import { groupProblems, type Problem, type ProblemGroup, refusal } from './problems.js'
import { readLimits } from './proc/limits.js'
import { readVmFlags } from './proc/maps.js'
import { readStat } from './proc/stat.js'
import { readStatus } from './proc/status.js'
import { readChildren, readTids } from './proc/tasks.js'
import { scratchPages } from './remote/scratch.js'

export interface Preflight {
  workload: { pid: number; comm: string; threads: number; residentPages: number }
  /** Every problem, not only the first. Empty: the process can move. */
  problems: ProblemGroup[]
}

export interface PreflightLimits {
  /** Data of files that have no name any more, all together, in bytes. */
  ghostBytes?: number
}

const kernelThreadFlag = 0x0020_0000 // PF_KTHREAD
const namespaces = ['cgroup', 'ipc', 'mnt', 'net', 'pid', 'user', 'uts'] as const

/**
 * Inspects a process from outside; stops nothing and changes nothing. What only the process itself can tell, probe.ts asks.
 * @throws NO_SUCH_PROCESS, or NOT_PERMITTED when this is not root
 */
export function preflight(pid: number, limits: PreflightLimits = {}): Preflight {
  if (!existsSync(`/proc/${pid}`)) throw new PageferryError('NO_SUCH_PROCESS', `there is no process ${pid}`)
  if (process.getuid?.() !== 0) {
    throw new PageferryError('NOT_PERMITTED', 'moving a process needs root on both machines')
  }
  try {
    return inspect(pid, limits)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ESRCH') {
      throw new PageferryError('NO_SUCH_PROCESS', `process ${pid} has exited`, { cause: error })
    }
    if (code === 'EACCES' || code === 'EPERM') {
      throw new PageferryError(
        'NOT_PERMITTED',
        `process ${pid} cannot be inspected (${(error as Error).message}): it is init of this machine, or a security module protects it`,
        { cause: error },
      )
    }
    throw error
  }
}

/**
 * Does the same for a caller that wants to move the process.
 * @throws also REFUSED, with all problems
 */
export function requireMovable(pid: number, limits?: PreflightLimits): Preflight['workload'] {
  const { workload, problems } = preflight(pid, limits)
  if (problems.length === 0) return workload
  throw refusal(`process ${pid} (${workload.comm}) cannot be moved`, problems)
}

function inspect(pid: number, { ghostBytes = defaultGhostBytes }: PreflightLimits): Preflight {
  const stat = readStat(pid)
  const status = readStatus(pid)
  const workload = {
    pid,
    comm: stat.comm,
    threads: stat.nrThreads,
    residentPages: Number(readFileSync(`/proc/${pid}/statm`, 'utf8').split(' ')[1]),
  }
  if ((stat.flags & kernelThreadFlag) !== 0) {
    return { workload, problems: [only(pid, 'it is a kernel thread')] }
  }
  if (stat.state === 'Z' || stat.state === 'X') {
    const leaderOnly = stat.state === 'Z' && stat.nrThreads > 1
    const reason = leaderOnly
      ? 'its main thread has ended while others run on, which cannot be rebuilt yet'
      : 'it has exited and waits to be reaped'
    return { workload, problems: [only(pid, reason)] }
  }
  const problems = [
    ...checkTask(pid, stat, status),
    ...checkNamespaces(pid),
    ...checkThreads(pid),
    ...checkAttributes(pid),
    ...checkFamily(pid),
    ...checkOutside(pid),
    ...checkFs(pid),
    ...checkMemoryMap(pid),
    ...checkMappedPaths(pid),
    ...checkDescriptors(pid),
    ...checkGhosts(pid, ghostBytes),
    ...checkFreezer(pid),
    ...checkTimers(pid),
    ...checkRoom(pid),
  ]
  return { workload, problems: groupProblems(problems) }
}

function only(pid: number, reason: string): ProblemGroup {
  return { what: `process ${pid}`, reason, count: 1 }
}

function checkMemoryMap(pid: number): Problem[] {
  const { map, problems } = dumpMemoryMap(pid, readVmFlags(pid))
  try {
    requireAreaCount(map.areas.length)
    return problems
  } catch (error) {
    return [...problems, { what: `process ${pid}`, reason: (error as Error).message }]
  }
}

function checkTask(
  pid: number,
  stat: ReturnType<typeof readStat>,
  status: ReturnType<typeof readStatus>,
): Problem[] {
  const what = `process ${pid}`
  const problems: Problem[] = []
  const add = (condition: boolean, reason: string): void => {
    if (condition) problems.push({ what, reason })
  }
  add(
    status.tracerPid !== 0,
    `it is traced by process ${status.tracerPid} (a debugger, strace?): detach that first`,
  )
  add(
    stat.session !== pid || stat.pgrp !== pid,
    `it belongs to session ${stat.session} of another process: start it with setsid`,
  )
  add(stat.ttyNr !== 0, 'it has a controlling terminal: start it with setsid, input and output redirected')
  add(status.seccomp !== 0, 'a seccomp filter is active, which cannot be rebuilt yet')
  add(status.coreDumping, 'it is dumping core')
  add(status.x86ThreadFeatures.includes('shstk'), 'it uses a shadow stack')
  add(is32Bit(pid), 'it is a 32-bit program')
  return problems
}

function is32Bit(pid: number): boolean {
  const header = Buffer.alloc(5)
  const fd = openSync(`/proc/${pid}/exe`, 'r')
  try {
    readSync(fd, header)
  } finally {
    closeSync(fd)
  }
  // EI_CLASS of the executable: 1 is ELFCLASS32 (elf(5)).
  return header[4] === 1
}

/**
 * Threads are restored with everything shared that clone(2) shares by default. Refuses threads that were made apart.
 */
function checkThreads(pid: number): Problem[] {
  const problems: Problem[] = []
  for (const tid of readTids(pid).slice(1)) {
    const what = `thread ${tid}`
    try {
      if (fds.kcmp(pid, tid, fds.KCMP_FILES) !== 0)
        problems.push({ what, reason: 'it has descriptors of its own' })
      if (fds.kcmp(pid, tid, fds.KCMP_FS) !== 0)
        problems.push({ what, reason: 'it has a working directory of its own' })
      if (readStatus(pid, tid).seccomp !== 0)
        problems.push({ what, reason: 'a seccomp filter is active in it' })
    } catch (error) {
      // The thread has ended meanwhile.
      if (!['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error
    }
  }
  return problems
}

/** Own namespaces (except time, which is rebuilt) would have to be moved with the process. */
function checkNamespaces(pid: number): Problem[] {
  const problems: Problem[] = []
  for (const name of namespaces) {
    if (readlinkSync(`/proc/${pid}/ns/${name}`) !== readlinkSync(`/proc/self/ns/${name}`)) {
      problems.push({
        what: `${name} namespace`,
        reason: 'the process is in another one than the dump service',
      })
    }
  }
  return problems
}

/** Without a cgroup to freeze it in, the workload could not be handed over. In one that is frozen nothing runs. */
function checkFreezer(pid: number): Problem[] {
  try {
    Freezer.forProcess(pid, 'probe')
    const path = frozenIn(pid)
    if (path === null) return []
    const reason = `it is frozen in ${path} (docker pause, systemctl freeze, or the original of an earlier migration): thaw it first`
    return [{ what: `process ${pid}`, reason }]
  } catch (error) {
    if (!(error instanceof PageferryError) || error.code !== 'UNSUPPORTED_HOST') throw error
    return [{ what: 'cgroup freezer', reason: error.message }]
  }
}

const rlimitAs = 9 // RLIMIT_AS

/** The freeze maps a scratch area into the workload, for the arguments and answers of its system calls. */
function checkRoom(pid: number): Problem[] {
  const pages = BigInt(readFileSync(`/proc/${pid}/statm`, 'utf8').split(' ')[0]) + BigInt(scratchPages)
  const { soft } = readLimits(pid)[rlimitAs]
  if (pages * BigInt(pageBytes) <= soft) return []
  const reason = `its limit of ${soft} bytes of address space (RLIMIT_AS) leaves no room for a scratch area of ${scratchPages} pages`
  return [{ what: `process ${pid}`, reason }]
}

/**
 * Allows one process without children; trees come with a later version. Checked again in the freeze: one may have been
 * born.
 */
export function checkFamily(pid: number): Problem[] {
  const children = readChildren(pid)
  if (children.length === 0) return []
  return [{ what: `child processes ${children.join(', ')}`, reason: 'only single processes are moved yet' }]
}
