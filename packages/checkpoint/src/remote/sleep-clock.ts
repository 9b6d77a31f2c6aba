import { readFileSync } from 'node:fs'
import { processes } from '@pageferry/kernel'

/** /proc/PID/task/TID/sched: when the thread last ran, by the clock of its processor, and how often it has waited. */
export interface SchedulerFacts {
  execStartNs: bigint
  voluntarySwitches: number
}

export function schedulerFacts(task: string): SchedulerFacts {
  const text = readFileSync(`${task}/sched`, 'utf8')
  const m = /^se\.exec_start\s*:\s*(\d+)\.(\d+)/m.exec(text)
  const switches = /^nr_voluntary_switches\s*:\s*(\d+)/m.exec(text)
  return {
    execStartNs: m === null ? 0n : BigInt(m[1]) * 1_000_000n + BigInt(m[2].padEnd(6, '0').slice(0, 6)),
    voluntarySwitches: Number(switches?.[1] ?? 0),
  }
}

/** The processor on which a thread ran last: field 39 of its stat (proc_pid_stat(5)). */
export function lastProcessor(task: string): number {
  const text = readFileSync(`${task}/stat`, 'utf8')
  return Number(text.slice(text.lastIndexOf(')') + 2).split(' ')[36])
}

/**
 * CLOCK_MONOTONIC minus the scheduler's clock, in ns, by processor. Each processor has a clock of its own, which stands
 * still while a hypervisor or an interrupt uses the processor. The clocks are seconds apart on a machine that is up for
 * days. So we run for a moment where the thread ran.
 *
 * We read one clock after the other, and the time in between makes the offset too large. A sleep then seems shorter
 * than it was: a wait may last longer than requested, but it never ends early.
 */
export class SchedulerClocks {
  readonly #offsets = new Map<number, bigint | null>()

  /** Takes about half a millisecond, longer if the processor is busy. */
  measure(processor: number): void {
    if (!this.#offsets.has(processor)) this.#offsets.set(processor, measureOffset(processor))
  }

  /** null: not measured, or we may not run on that processor. */
  offset(processor: number): bigint | null {
    return this.#offsets.get(processor) ?? null
  }
}

function measureOffset(processor: number): bigint | null {
  const own = processes.getAffinity(0)
  const only = new Uint8Array(own.length)
  if (processor >> 3 >= own.length) return null
  only[processor >> 3] = 1 << (processor & 7)
  try {
    processes.setAffinity(0, only)
  } catch {
    return null
  }
  try {
    // Our own exec_start is fresh only right after we were scheduled.
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 0.05)
    const { execStartNs } = schedulerFacts('/proc/thread-self')
    return processes.clockGettime(processes.CLOCK_MONOTONIC) - execStartNs
  } finally {
    processes.setAffinity(0, own)
  }
}
