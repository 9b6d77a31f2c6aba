import { readFileSync } from 'node:fs'
import { isKernelError } from '@pageferry/base'
import { sysvipc } from '@pageferry/kernel'
import type { Problem } from '../../problems.js'
import { readStat, ticksPerSecond } from '../../proc/stat.js'
import type { CallBatch } from '../../remote/call-batch.js'
import { askKeyrings } from './keyrings.js'

/**
 * Parts that stay on the source. The process runs on without them, so they are no reason to refuse. But the report must name
 * them.
 */

const prSchedCore = 62
const unsetSession = '4294967295'

/** Asks the process itself. @returns parts that stay behind, once the batch has run */
export function askLeftBehind(batch: CallBatch): () => Problem[] {
  const keyrings = askKeyrings(batch)
  const cookie = batch.room(8)
  // PR_SCHED_CORE_GET (0) of the calling thread (0), PIDTYPE_PID (0).
  const core = batch.tryAdd('prctl', prSchedCore, 0, 0, 0, cookie)
  return () => {
    const shares = core() === 0n && batch.read(cookie, 8).readBigUInt64LE(0) !== 0n
    const reason = 'only processes of one host can agree to share the threads of a core'
    return [...keyrings(), ...(shares ? [{ what: 'core-scheduling of the process', reason }] : [])]
  }
}

/** Parts that are visible from outside, also while the original is frozen: so this costs the capture nothing. */
export function leftBehind(pid: number): Problem[] {
  return [
    ...processorTime(pid),
    ...loginSession(pid),
    ...cgroups(pid),
    ...messageQueues(pid),
    ...semaphores(pid),
  ]
}

function processorTime(pid: number): Problem[] {
  const seconds = (readStat(pid).cpuTicks / ticksPerSecond).toFixed(2)
  return [
    {
      what: `cpu-time of the process (${seconds} s)`,
      reason: 'it begins anew; timers of processor time and RLIMIT_CPU are set to what remained',
    },
  ]
}

function loginSession(pid: number): Problem[] {
  const session = readIfThere(`/proc/${pid}/sessionid`)
  if (session === '' || session === unsetSession) return []
  return [
    {
      what: `login-session of the process (${session})`,
      reason: 'each kernel numbers the sessions of its audit by itself',
    },
  ]
}

/** Each hierarchy has a line "id:controllers:path" (cgroups(7)). */
function cgroups(pid: number): Problem[] {
  const paths = readFileSync(`/proc/${pid}/cgroup`, 'utf8')
    .split('\n')
    .flatMap((line) => line.split(':').slice(2).join(':') || [])
  const own = [...new Set(paths)].filter((path) => path !== '/' && !path.endsWith('/..'))
  if (own.length === 0) return []
  return [
    {
      what: `cgroup of the process (${own.join(', ')})`,
      reason: 'on the destination it has a cgroup of its own, without the limits of this one',
    },
  ]
}

/** proc_sysvipc(5): words in columns, below a line of their names. Pids are those of the reader's pid namespace. */
function sysvObjects(file: 'msg' | 'sem'): Record<string, string>[] {
  const [head = '', ...lines] = readIfThere(`/proc/sysvipc/${file}`).split('\n')
  const names = head.trim().split(/\s+/)
  return lines.map((line) => {
    const words = line.trim().split(/\s+/)
    return Object.fromEntries(names.map((name, i) => [name, words[i] ?? '']))
  })
}

const sysvReason = 'System V objects that are known by their number stay on the source'

function messageQueues(pid: number): Problem[] {
  return sysvObjects('msg')
    .filter(({ lspid, lrpid }) => lspid === String(pid) || lrpid === String(pid))
    .map(({ msqid, key }) => ({ what: `message-queue ${msqid} (key ${key})`, reason: sysvReason }))
}

/** Bounds the number of semaphores that are inspected. SEMMNS is 32,000, unless raised. */
const maxSemaphores = 32_000

function semaphores(pid: number): Problem[] {
  let left = maxSemaphores
  const used = sysvObjects('sem').filter(({ semid, nsems }) => {
    const nr = Math.min(Number(nsems), left)
    left -= nr
    return Array.from({ length: nr }, (_, i) => i).some((number) => lastUser(Number(semid), number) === pid)
  })
  return used.map(({ semid, key }) => ({ what: `semaphore-set ${semid} (key ${key})`, reason: sysvReason }))
}

/** 0: the set was removed meanwhile. */
function lastUser(id: number, number: number): number {
  try {
    return sysvipc.semaphorePid(id, number)
  } catch (error) {
    if (!isKernelError(error)) throw error
    return 0
  }
}

/** '' in a kernel that has no such file. */
function readIfThere(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim()
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    return ''
  }
}
