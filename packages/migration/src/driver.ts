import { type ErrorInfo, isKernelError, PageferryError, toErrorInfo } from '@pageferry/base'
import type { CommonEvent, Transition } from './machine.js'

/** Effects that only start work: `stepDone` or `stepFailed` of this step reports its end. */
export const STEP_OF_EFFECT: Readonly<Record<string, string>> = {
  startPrepare: 'prepare',
  startPrecopy: 'precopy',
  freezeWorkload: 'freeze',
  startDump: 'dump',
  startServing: 'serve',
  connect: 'connect',
  startRestore: 'restore',
  thawSkeleton: 'thaw',
  startPostcopy: 'postcopy',
}

/** Effects that stop the running steps first, because they change what those steps rely on. */
const STOPPING = ['resumeWorkload', 'discardSkeleton', 'killOriginal']

interface Failed {
  readonly type: 'effectFailed'
  readonly effect: string
  readonly error: ErrorInfo
}

export interface DriverOptions<State, Event, Effect> {
  readonly step: (state: State, event: Event) => Transition<State, Effect>
  /**
   * Executes one effect. For step effects the promise is the step: it resolves when the work is done, and `signal`
   * tells it to give up (it must then end soon, in any way). For all others the promise is awaited before anything else
   * happens. A rejection becomes `stepFailed`, `effectFailed` or `journalFailed`. The last reads `details.written` of a
   * PageferryError, a failed thaw reads `details.neverRan`.
   */
  readonly execute: (effect: Effect, signal: AbortSignal) => Promise<void> | void
  /** Called after every transition, before its effects. */
  readonly onState?: (state: State) => void
}

/**
 * The main loop of a driver: one event at a time, effects in order, each to its end (machine.ts has the rules).
 * `stop()` or a `restart` effect ends it; nothing is executed afterwards.
 */
export class Driver<
  State,
  Event extends CommonEvent<string, string, { type: string }, { type: string }>,
  Effect extends { readonly type: string },
> {
  #state: State
  #stopped = false
  #draining = false
  #steps = new Map<Promise<void>, AbortController>()
  readonly #urgent: Event[] = []
  readonly #queue: Event[] = []
  readonly #options: DriverOptions<State, Event, Effect>
  #idle: Promise<void> = Promise.resolve()

  constructor(first: Transition<State, Effect>, options: DriverOptions<State, Event, Effect>) {
    this.#state = first.state
    this.#options = options
    this.#draining = true
    this.#idle = Promise.resolve().then(async () => {
      options.onState?.(first.state)
      await this.#perform(first.effects)
      await this.#drain()
    })
  }

  get state(): State {
    return this.#state
  }

  /** Resolves when no event is waiting and no effect is being executed; steps may still be running. */
  get idle(): Promise<void> {
    return this.#idle
  }

  /** Queues an event. Never throws and never runs anything synchronously. */
  post(event: Event): void {
    if (this.#stopped) return
    this.#queue.push(event)
    if (this.#draining) return
    this.#draining = true
    this.#idle = Promise.resolve().then(() => this.#drain())
  }

  /** Stops executing; running steps are told to give up. The workload stays as it is. */
  stop(): void {
    this.#stopped = true
    for (const controller of this.#steps.values()) controller.abort()
  }

  async #drain(): Promise<void> {
    for (;;) {
      const event = this.#stopped ? undefined : (this.#urgent.shift() ?? this.#queue.shift())
      if (event === undefined) {
        this.#draining = false
        return
      }
      const { state, effects } = this.#options.step(this.#state, event)
      this.#state = state
      this.#options.onState?.(state)
      await this.#perform(effects)
    }
  }

  async #perform(effects: readonly Effect[]): Promise<void> {
    for (const effect of effects) {
      if (this.#stopped) return
      if (STEP_OF_EFFECT[effect.type] !== undefined) {
        this.#start(effect, STEP_OF_EFFECT[effect.type])
        continue
      }
      try {
        if (STOPPING.includes(effect.type)) await this.#stopSteps()
        await this.#options.execute(effect, new AbortController().signal)
      } catch (cause) {
        // The effects behind the failed one depend on it and must not happen.
        this.#urgent.push(failure(effect, cause) as unknown as Event)
        return
      } finally {
        if (effect.type === 'restart') this.stop()
      }
    }
  }

  #start(effect: Effect, step: string): void {
    const controller = new AbortController()
    const run = async () => this.#options.execute(effect, controller.signal)
    const ended: Promise<void> = run().then(
      () => {
        this.#steps.delete(ended)
        // Lanes report themselves: a dialled connection is the event `connected`.
        if (!controller.signal.aborted && step !== 'connect') {
          this.post({ type: 'stepDone', step } as unknown as Event)
        }
      },
      (cause: unknown) => {
        this.#steps.delete(ended)
        if (controller.signal.aborted) return
        const error = toErrorInfo(cause)
        const neverRan = error.details?.neverRan === true
        this.post({ type: 'stepFailed', step, error, neverRan } as unknown as Event)
      },
    )
    this.#steps.set(ended, controller)
  }

  async #stopSteps(): Promise<void> {
    for (const controller of this.#steps.values()) controller.abort()
    await Promise.all(this.#steps.keys())
  }
}

function failure(effect: { readonly type: string; readonly record?: unknown }, cause: unknown) {
  const error = toErrorInfo(cause)
  if (effect.type !== 'journal') {
    return { type: 'effectFailed', effect: effect.type, error } satisfies Failed
  }
  const known = cause instanceof PageferryError || isKernelError(cause)
  const written = known && error.details?.written === 'no' ? 'no' : 'unknown'
  return { type: 'journalFailed', record: effect.record, written, error }
}
