import { type ErrorInfo, PageferryError, toErrorInfo } from '@pageferry/base'
import { type FaultPoint, type FaultSpec, planFault } from './faults.js'

/** Every phase of either worker. A phase may run more than once (rounds). */
export const PHASES = [
  // source
  'prepare',
  'round',
  'freeze',
  'capture',
  'transfer',
  'commit',
  'serve',
  'release',
  // destination
  'connect',
  'skeleton',
  'receive',
  'reconcile',
  'restore',
  'resume',
  'postcopy',
  'verify',
  'drain',
] as const
export type PhaseName = (typeof PHASES)[number]

export interface PhaseRecord {
  readonly phase: PhaseName
  readonly startMs: number
  readonly durationMs: number
  readonly error?: ErrorInfo
}

export interface PhaseHooks {
  /** Milliseconds of a monotonic clock. */
  readonly now: () => number
  readonly sleep: (ms: number) => Promise<void>
  /** Ends the worker at once, as kill -9 would. */
  readonly crash: () => void
  /** Progress, for users. */
  readonly onStart?: (phase: PhaseName) => void
  /** Log: the phase ended, with or without success. */
  readonly onEnd?: (record: PhaseRecord) => void
}

/**
 * Every phase of a migration runs through `run`, the one place for timing, logging, progress and injected faults. It
 * changes nothing about the workload itself. The phase itself decides who owns the process after a failure.
 */
export class Phases {
  readonly #hooks: PhaseHooks
  readonly #faults: readonly FaultSpec[]
  readonly #spent = new Set<FaultSpec>()
  readonly #records: PhaseRecord[] = []

  constructor(hooks: PhaseHooks, faults: readonly FaultSpec[] = []) {
    this.#hooks = hooks
    this.#faults = faults
  }

  /** Phases in the order of their end. */
  get records(): readonly PhaseRecord[] {
    return this.#records
  }

  /** Total time of a phase over all its runs; 0 for one that never ran. */
  durationMs(phase: PhaseName): number {
    let sum = 0
    for (const record of this.#records) if (record.phase === phase) sum += record.durationMs
    return sum
  }

  /** @throws the error of `fn`, or INTERNAL for an injected error (`details.injected`). */
  async run<T>(phase: PhaseName, fn: () => Promise<T> | T): Promise<T> {
    const startMs = this.#hooks.now()
    this.#hooks.onStart?.(phase)
    let error: ErrorInfo | undefined
    try {
      return await this.#withFault(phase, fn)
    } catch (cause) {
      error = toErrorInfo(cause)
      throw cause
    } finally {
      const durationMs = this.#hooks.now() - startMs
      const record: PhaseRecord = { phase, startMs, durationMs, ...(error && { error }) }
      this.#records.push(record)
      this.#hooks.onEnd?.(record)
    }
  }

  /** For faults that strike at one place in the code. Only crashes do. */
  reach(point: FaultPoint): void {
    const fault = this.#faults.find((spec) => spec.point === point && !this.#spent.has(spec))
    if (!fault) return
    this.#spent.add(fault)
    this.#hooks.crash()
  }

  /** A fault strikes once: the retry after it must be able to succeed. */
  async #withFault<T>(phase: PhaseName, fn: () => Promise<T> | T): Promise<T> {
    const fault = this.#faults.find(
      (spec) => spec.phase === phase && spec.point === undefined && !this.#spent.has(spec),
    )
    if (!fault) return fn()
    this.#spent.add(fault)
    const { moment, waitMs } = planFault(fault)
    const strike = async () => {
      if (fault.kind === 'crash') this.#hooks.crash()
      else if (fault.kind === 'delay') await this.#hooks.sleep(waitMs)
      else throw injected(fault, moment)
    }
    if (moment === 'before') await strike()
    if (moment !== 'during') {
      const result = await fn()
      if (moment === 'after') await strike()
      return result
    }
    let ended = false
    const pending = this.#hooks.sleep(waitMs).then(() => (ended ? undefined : strike()))
    try {
      return await fn()
    } finally {
      ended = true
      // A timer that fires later finds the phase ended. Nothing else waits for its error.
      pending.catch(() => undefined)
    }
  }
}

function injected(fault: FaultSpec, moment: string): PageferryError {
  return new PageferryError('INTERNAL', `injected ${fault.kind} ${moment} phase ${fault.phase}`, {
    details: { injected: true, seed: fault.seed },
  })
}
