import { readFileSync, writeFileSync } from 'node:fs'
import { isKernelError } from '@pageferry/base'
import { processes } from '@pageferry/kernel'
import { askedCpus, describeCpus } from './cpus.js'
import { fromNumber, toNumber } from './values.js'

/** Attributes that another process reads and sets. */
export interface OutsideAttribute {
  /** In images and in the list (list.ts). */
  readonly name: string
  readonly of: 'thread' | 'process'
  /** Null for the value of a new process. */
  dump(pid: number, tid: number): Uint8Array | null
  /** @returns the reason for a difference, or null. @throws kernel errors, which are reasons, too */
  restore(pid: number, tid: number, value: Uint8Array): string | null
}

/** Of /proc/PID/autogroup: "/autogroup-25 nice 0" (sched(7)). */
const autogroupNice = / nice (-?\d+)$/m

const schedFlagKeepPolicy = 0x08n
const schedFlagKeepParams = 0x10n
const schedFlagClamps = 0x60n
/** SCHED_OTHER, SCHED_BATCH: the policies that have a slice. */
const fairPolicies = [0, 3]
const noClamps = { utilMin: 0, utilMax: 1024 }

export const outsideAttributes: readonly OutsideAttribute[] = [
  {
    name: 'cpu-affinity',
    of: 'thread',
    dump: (pid, tid) => askedCpus(pid, tid),
    restore(_pid, tid, value) {
      try {
        processes.setAffinity(tid, value)
      } catch (error) {
        if (!isKernelError(error, 'EINVAL')) throw error
        return `it was bound to ${describeCpus(value)}, which do not exist on the destination: it may use all`
      }
      const now = processes.getAffinity(tid)
      const lost = value.map((bits, i) => bits & ~(now[i] ?? 0))
      if (lost.every((bits) => bits === 0)) return null
      return `it was bound to ${describeCpus(value)}; the destination has no ${describeCpus(lost)}`
    },
  },
  {
    name: 'scheduler-slice',
    of: 'thread',
    dump(_pid, tid) {
      const { policy, runtimeNs } = processes.schedGetattr(tid)
      // Every fair thread shows a slice. Without a slice of its own it shows the host's, as this thread does.
      const asked = fairPolicies.includes(policy) && runtimeNs !== processes.schedGetattr(0).runtimeNs
      return asked ? fromNumber(runtimeNs) : null
    },
    restore(_pid, tid, value) {
      processes.schedSetattr(tid, { ...processes.schedGetattr(tid), runtimeNs: toNumber(value) })
      return null
    },
  },
  {
    name: 'utilization-clamps',
    of: 'thread',
    dump(_pid, tid) {
      const { utilMin, utilMax } = processes.schedGetattr(tid)
      if (utilMax === 0 || (utilMin === noClamps.utilMin && utilMax === noClamps.utilMax)) return null
      return fromNumber((BigInt(utilMax) << 32n) | BigInt(utilMin))
    },
    restore(_pid, tid, value) {
      const both = toNumber(value)
      processes.schedSetattr(tid, {
        ...processes.schedGetattr(tid),
        flags: schedFlagKeepPolicy | schedFlagKeepParams | schedFlagClamps,
        utilMin: Number(both & 0xffff_ffffn),
        utilMax: Number(both >> 32n),
      })
      return null
    },
  },
  {
    name: 'coredump-filter',
    of: 'process',
    dump: (pid) => fromNumber(BigInt(`0x${readFileSync(`/proc/${pid}/coredump_filter`, 'utf8').trim()}`)),
    restore(pid, _tid, value) {
      writeFileSync(`/proc/${pid}/coredump_filter`, `0x${toNumber(value).toString(16)}`)
      return null
    },
  },
  {
    name: 'autogroup-nice',
    of: 'process',
    dump(pid) {
      const nice = autogroupNice.exec(readIfThere(`/proc/${pid}/autogroup`))?.[1] ?? '0'
      return nice === '0' ? null : fromNumber(BigInt(nice))
    },
    restore(pid, _tid, value) {
      writeFileSync(`/proc/${pid}/autogroup`, String(BigInt.asIntN(64, toNumber(value))))
      return null
    },
  },
]

/** '' in a kernel that has no such file. */
function readIfThere(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    return ''
  }
}
