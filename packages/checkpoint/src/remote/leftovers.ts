import { addressOf, PageferryError, pageBytes } from '@pageferry/base'
import { memory, ptrace } from '@pageferry/kernel'
import { type MapsLine, readMaps } from '../proc/maps.js'
import { codeBytes, isInjectionCode } from './exit-sequence.js'
import { findGap, scratchPages } from './scratch.js'
import { StoppedProcess } from './stopped-process.js'

/** A thread in the middle of leftover code leaves it within microseconds. */
const attempts = 50
const pauseMs = 2

/**
 * Chooses the place of a freeze's scratch area, far from where the kernel puts new mappings. It is chosen while the
 * workload still runs, so that the place is on record before the area exists. If the workload maps something there in
 * the meantime, `mapScratch` fails.
 */
export function chooseScratch(pid: number): number {
  return findGap(readMaps(pid), scratchPages)
}

/**
 * Removes the leftovers of a killed tracer of ours: the scratch area (only an area of exactly its kind at the place
 * that was chosen for it) and injected code behind the vdso. Stops the process for a moment, and only if it finds
 * something. The process must not be frozen.
 */
export function removeLeftovers(pid: number, scratchPage: number | undefined): void {
  if (!hasLeftovers(pid, scratchPage)) return
  for (let attempt = 0; ; attempt++) {
    const stopped = StoppedProcess.stop(pid, 'all')
    let settled = true
    try {
      const site = stopped.codeSite
      const inside = ({ regs }: { regs: BigUint64Array }): boolean =>
        regs[ptrace.REG.rip] >= site && regs[ptrace.REG.rip] < site + BigInt(codeBytes)
      settled = !stopped.threads.some(inside)
      if (settled && readMaps(pid).some((area) => isScratch(area, scratchPage))) {
        stopped.leader.call('munmap', addressOf(scratchPage as number), scratchPages * pageBytes)
      }
    } finally {
      // `resume` also wipes the code, which is wrong while a thread is in it.
      if (settled) stopped.resume()
      else stopped.detach()
    }
    if (settled) return
    if (attempt === attempts)
      throw new PageferryError('TIMEOUT', `a thread of process ${pid} stays in injected code`)
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, pauseMs)
  }
}

function hasLeftovers(pid: number, scratchPage: number | undefined): boolean {
  const maps = readMaps(pid)
  if (maps.some((area) => isScratch(area, scratchPage))) return true
  const vdso = maps.find((area) => area.name === '[vdso]')
  if (vdso === undefined) return false
  const site = addressOf(vdso.start + vdso.nrPages) - BigInt(codeBytes)
  return isInjectionCode(memory.readBytes(pid, site, codeBytes))
}

function isScratch(area: MapsLine, page: number | undefined): boolean {
  const anonymous = area.name === '/dev/zero (deleted)'
  return area.start === page && area.nrPages === scratchPages && area.shared && anonymous
}
