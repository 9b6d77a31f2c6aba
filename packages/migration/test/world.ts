import {
  type DestinationEffect,
  type DestinationEvent,
  type DestinationRecord,
  type DestinationState,
  destinationStateFromJournal,
  isDestinationFinal,
  isSourceFinal,
  type Mode,
  type SourceEffect,
  type SourceEvent,
  type SourceRecord,
  type SourceState,
  STEP_OF_EFFECT,
  sourceStateFromJournal,
  startDestination,
  startSource,
  stepDestination,
  stepSource,
  type ToDestination,
  type ToSource,
  type Transition,
  type WorkloadExit,
} from '../src/index.js'
import { onTheWay } from './frames.js'

/*
 * Two machines, two journals, a workload and a network, as data. Every effect is executed on its own, so a
 * crash can fall between any two. What survives a crash is what survives in reality: the journal, the frozen
 * original (unless only ptrace held it: then it runs), the skeleton (unless EXITKILL ties it to its tracer).
 */

const ACTIONS = [
  'source',
  'destination',
  'stepEnds',
  'toSource',
  'toDestination',
  'dial',
  'break',
  'crashSource',
  'crashDestination',
  'restartSource',
  'restartDestination',
  'cancelSource',
  'cancelDestination',
  'timeoutSource',
  'timeoutDestination',
  'unknownSource',
  'unknownDestination',
  'stepFails',
  'proofFails',
  'journalFault',
  'effectFault',
  'skeletonDies',
  'workloadExits',
  'hostRestarts',
] as const
export type ActionName = (typeof ACTIONS)[number]
export interface Action {
  name: ActionName
  n: number
}

type Mutate<S, V, E> = (before: S, event: V, after: Transition<S, E>) => Transition<S, E>
/** A broken rule, to see that the properties notice. */
export interface Mutation {
  source?: Mutate<SourceState, SourceEvent, SourceEffect>
  destination?: Mutate<DestinationState, DestinationEvent, DestinationEffect>
  destinationRestart?: (
    after: Transition<DestinationState, DestinationEffect>,
  ) => Transition<DestinationState, DestinationEffect>
}

interface Side<S, V, E, R> {
  up: boolean
  state: S
  effects: E[]
  urgent: V[]
  queue: V[]
  steps: string[]
  journal: R[]
  finished: string[]
}

interface Pending {
  effects: unknown[]
  urgent: unknown[]
}

interface Connection {
  toSource: ToSource[]
  toDestination: ToDestination[]
}

export class Violation extends Error {}

const INJECTED = { code: 'INTERNAL', message: 'injected' } as const
const DIFFERS = { code: 'VERIFY_FAILED', message: '1 page differs' } as const

function side<S, V, E, R>(first: Transition<S, E>): Side<S, V, E, R> {
  return {
    up: true,
    state: first.state,
    effects: [...first.effects],
    urgent: [],
    queue: [],
    steps: [],
    journal: [],
    finished: [],
  }
}

export class World {
  readonly source: Side<SourceState, SourceEvent, SourceEffect, SourceRecord>
  readonly destination: Side<DestinationState, DestinationEvent, DestinationEffect, DestinationRecord>
  readonly trace: string[] = []
  original: 'running' | 'stopped' | 'frozen' | 'killed' | 'exited' = 'running'
  skeleton: 'none' | 'tied' | 'frozen' | 'running' | 'killed' | 'exited' = 'none'
  everRan = false
  drained = false
  /** The memory of the restored process is not the original's; no worker that compares finds anything else. */
  differs = false
  skeletonDied = false
  /** The destination's machine went down once: its processes are gone, its journal is not. */
  hostRestarted = false
  /** How the restored workload ended. */
  #exit: WorkloadExit = { kind: 'exited', value: 0 }
  #connection: Connection | undefined
  #dialling: 'connect' | 'reconnect' | undefined
  #old: Connection = { toSource: [], toDestination: [] }
  #journalFault: number | undefined
  #effectFault = false
  readonly #mode: Mode
  readonly #mutation: Mutation

  constructor(mode: Mode, mutation: Mutation = {}) {
    this.#mode = mode
    this.#mutation = mutation
    this.source = side(startSource(mode))
    this.destination = side(startDestination())
  }

  /** One action; what is not possible now does nothing. @returns whether something happened. */
  act({ name, n }: Action): boolean {
    const done = this.#act(name, n)
    if (done) {
      this.trace.push(
        `${name} ${n}: ${this.source.up ? this.source.state.name : 'down'}/${this.original} ` +
          `${this.destination.up ? this.destination.state.name : 'down'}/${this.skeleton}`,
      )
    }
    this.#check()
    return done
  }

  #act(name: ActionName, n: number): boolean {
    const { source, destination } = this
    switch (name) {
      case 'source':
        return this.#sourceProgress()
      case 'destination':
        return this.#destinationProgress()
      case 'stepEnds':
        return n % 2 === 0
          ? this.#sourceStepEnds() || this.#destinationStepEnds(n)
          : this.#destinationStepEnds(n) || this.#sourceStepEnds()
      case 'stepFails': {
        const one = n % 2 === 0 ? source : destination
        const step = one.up ? one.steps.shift() : undefined
        if (step === undefined) return false
        if (step === 'thaw' && n % 4 > 1) this.#thaw()
        one.queue.push({ type: 'stepFailed', step, error: INJECTED, neverRan: false } as never)
        return true
      }
      case 'proofFails':
        // What has drained was proven.
        if (this.drained) return false
        this.differs = true
        return true
      case 'toSource': {
        const message = source.up ? this.#connection?.toSource.shift() : undefined
        if (message) source.queue.push({ type: 'message', message })
        return message !== undefined
      }
      case 'toDestination': {
        const message = destination.up ? this.#connection?.toDestination.shift() : undefined
        if (message) destination.queue.push({ type: 'message', message })
        return message !== undefined
      }
      case 'dial':
        return this.#dial(n)
      case 'break':
        return this.#break(n)
      case 'crashSource':
        return this.#crash('source')
      case 'crashDestination':
        return this.#crash('destination')
      case 'restartSource':
        return this.#restartSource()
      case 'restartDestination':
        return this.#restartDestination()
      case 'cancelSource':
        source.queue.push(...(source.up ? [{ type: 'cancel' } as const] : []))
        return source.up
      case 'cancelDestination':
        destination.queue.push(...(destination.up ? [{ type: 'cancel' } as const] : []))
        return destination.up
      case 'timeoutSource':
        source.queue.push(...(source.up ? [{ type: 'timeout', what: 'test' } as const] : []))
        return source.up
      case 'timeoutDestination':
        destination.queue.push(...(destination.up ? [{ type: 'timeout', what: 'test' } as const] : []))
        return destination.up
      case 'unknownSource':
        source.queue.push(...(source.up ? [{ type: 'peerUnknown' } as const] : []))
        return source.up
      case 'unknownDestination':
        destination.queue.push(...(destination.up ? [{ type: 'peerUnknown' } as const] : []))
        return destination.up
      case 'journalFault':
        this.#journalFault = n % 3
        return true
      case 'effectFault':
        this.#effectFault = true
        return true
      case 'skeletonDies':
        if (this.skeleton !== 'tied' && this.skeleton !== 'frozen') return false
        this.skeleton = 'killed'
        this.skeletonDied = true
        if (destination.up) {
          destination.queue.push({ type: 'workloadExited', exit: { kind: 'signaled', value: 9 } })
        }
        return true
      case 'workloadExits':
        return this.#workloadExits(n)
      case 'hostRestarts':
        this.#crash('destination')
        this.hostRestarted = true
        if (this.skeleton !== 'none') this.skeleton = 'killed'
        return true
    }
  }

  /** Everything up, no more faults, until nothing moves. @throws Violation when that takes too long. */
  heal(): void {
    this.#journalFault = undefined
    this.#effectFault = false
    const names: ActionName[] = ['restartSource', 'restartDestination', 'dial', 'source', 'destination']
    names.push('toSource', 'toDestination', 'stepEnds')
    let patience = 3
    for (let round = 0; round < 2000; round++) {
      const moved = names.filter((name) => this.act({ name, n: 0 })).length > 0
      if (moved) continue
      if (isSourceFinal(this.source.state) && isDestinationFinal(this.destination.state)) {
        this.#checkEnd()
        return
      }
      if (patience-- === 0) break
      // What drivers and people do when nothing happens: time limits, and the operator's decision.
      this.act({ name: 'timeoutSource', n: 0 })
      this.act({ name: 'timeoutDestination', n: 0 })
      if (this.destination.state.name === 'lost') this.act({ name: 'cancelDestination', n: 0 })
    }
    throw new Violation(`stuck in ${this.source.state.name} and ${this.destination.state.name}`)
  }

  #check(): void {
    if (this.original === 'running' && this.skeleton === 'running') throw new Violation('it runs twice')
    if (this.original === 'killed' && !this.drained) throw new Violation('original killed before Drained')
    if (this.original === 'killed' && this.differs) throw new Violation('original killed without proof')
    if (
      this.destination.up &&
      this.destination.state.name === 'lost' &&
      !this.skeletonDied &&
      !this.hostRestarted
    ) {
      throw new Violation('lost, though nobody killed it')
    }
  }

  #checkEnd(): void {
    const alive = [this.original, this.skeleton].filter((where) => where === 'running').length
    const exited = this.original === 'exited' || this.skeleton === 'exited'
    // What had moved completely when the destination's machine went down has gone with it.
    const gaveUp = this.original === 'killed' || this.source.state.name === 'kept'
    const wentDown = this.hostRestarted && gaveUp && this.skeleton === 'killed'
    if (alive + (exited || wentDown ? 1 : 0) !== 1) {
      throw new Violation(`at the end: original ${this.original}, restored ${this.skeleton}`)
    }
    const [source, destination] = [this.source.finished.at(-1), this.destination.finished.at(-1)]
    if (source === undefined || destination === undefined) throw new Violation('an outcome was not reported')
    if ((source === 'migrated') !== (destination === 'migrated')) {
      throw new Violation(`outcomes differ: ${source}, ${destination}`)
    }
    if ((source === 'migrated') !== (this.original === 'killed')) throw new Violation(`outcome ${source}`)
    if ((source === 'kept') !== (destination === 'kept')) throw new Violation(`outcomes differ: ${source}`)
    if (source === 'kept' && this.original !== 'frozen') throw new Violation(`kept, but ${this.original}`)
    if (source === 'kept' && !this.differs) throw new Violation('kept without a reason')
    if (source === 'abandoned' && destination !== 'abandoned') throw new Violation('abandoned by nobody')
  }

  #sourceProgress(): boolean {
    const one = this.source
    if (!one.up) return false
    const effect = one.effects.shift()
    if (effect) {
      this.#sourceEffect(effect)
      return true
    }
    const event = one.urgent.shift() ?? one.queue.shift()
    if (!event) return false
    let after = stepSource(one.state, event)
    if (this.#mutation.source) after = this.#mutation.source(one.state, event, after)
    one.state = after.state
    one.effects = [...after.effects]
    return true
  }

  #destinationProgress(): boolean {
    const one = this.destination
    if (!one.up) return false
    const effect = one.effects.shift()
    if (effect) {
      this.#destinationEffect(effect)
      return true
    }
    const event = one.urgent.shift() ?? one.queue.shift()
    if (!event) return false
    let after = stepDestination(one.state, event)
    if (this.#mutation.destination) after = this.#mutation.destination(one.state, event, after)
    one.state = after.state
    one.effects = [...after.effects]
    return true
  }

  #sourceEffect(effect: SourceEffect): void {
    const one = this.source
    const step = STEP_OF_EFFECT[effect.type]
    if (step !== undefined) {
      one.steps.push(step)
      return
    }
    switch (effect.type) {
      case 'send':
        this.#connection?.toDestination.push(onTheWay(effect.message))
        return
      case 'journal':
        this.#journal(one, effect.record)
        return
      case 'finish':
        one.finished.push(effect.outcome)
        return
      case 'restart':
        this.#crash('source')
        return
      case 'detachAndKeepFrozen':
        if (this.#fails(one, effect.type)) return
        if (this.original === 'stopped' || this.original === 'running') this.original = 'frozen'
        return
      case 'resumeWorkload':
        one.steps = []
        if (this.#fails(one, effect.type)) return
        if (this.original === 'killed') throw new Violation('resumes a workload that was killed')
        if (this.original === 'stopped' || this.original === 'frozen') this.original = 'running'
        return
      case 'killOriginal':
        one.steps = []
        if (this.#fails(one, effect.type)) return
        this.original = 'killed'
        return
    }
  }

  #destinationEffect(effect: DestinationEffect): void {
    const one = this.destination
    const step = STEP_OF_EFFECT[effect.type]
    if (effect.type === 'connect') {
      this.#dialling = 'connect'
      return
    }
    if (step !== undefined) {
      one.steps.push(step)
      return
    }
    switch (effect.type) {
      case 'send':
        this.#connection?.toSource.push(onTheWay(effect.message))
        return
      case 'journal':
        this.#journal(one, effect.record)
        return
      case 'finish':
        one.finished.push(effect.outcome)
        return
      case 'restart':
        this.#crash('destination')
        return
      case 'reconnect':
        if (effect.lane === 'control' && !this.#connection) this.#dialling = 'reconnect'
        return
      case 'detachSkeleton':
        if (this.#fails(one, effect.type, this.skeleton === 'killed')) return
        if (this.skeleton === 'tied') this.skeleton = 'frozen'
        return
      case 'discardSkeleton':
        one.steps = []
        if (this.#fails(one, effect.type)) return
        if (this.skeleton === 'running') throw new Violation('kills the running workload')
        if (this.skeleton === 'tied' || this.skeleton === 'frozen') this.skeleton = 'killed'
        return
    }
  }

  #fails(one: Pending, effect: string, always = false): boolean {
    if (!always && !this.#effectFault) return false
    this.#effectFault = false
    one.effects = []
    one.urgent.push({ type: 'effectFailed', effect, error: INJECTED })
    return true
  }

  #journal(one: Pending & { journal: unknown[] }, record: unknown): void {
    const fault = this.#journalFault
    this.#journalFault = undefined
    if (fault === undefined) {
      one.journal.push(record)
      return
    }
    // 0: rolled back. 1, 2: unknown; a restart may find the record or not.
    if (fault === 1) one.journal.push(record)
    one.effects = []
    const written = fault === 0 ? 'no' : 'unknown'
    one.urgent.push({ type: 'journalFailed', record, written, error: INJECTED })
  }

  #sourceStepEnds(): boolean {
    const one = this.source
    const step = one.up ? one.steps.find((name) => name !== 'serve') : undefined
    if (step === undefined) return false
    one.steps.splice(one.steps.indexOf(step), 1)
    if (step === 'freeze' && this.original === 'running') this.original = 'stopped'
    one.queue.push({ type: 'stepDone', step: step as 'freeze' })
    return true
  }

  #destinationStepEnds(n: number): boolean {
    const one = this.destination
    const step = one.up ? one.steps[n % Math.max(1, one.steps.length)] : undefined
    if (step === undefined) return false
    const forget = () => one.steps.splice(one.steps.indexOf(step), 1)
    if (step === 'thaw') {
      forget()
      if (this.#thaw()) one.queue.push({ type: 'stepDone', step })
      else one.queue.push({ type: 'stepFailed', step, error: INJECTED, neverRan: !this.everRan })
      return true
    }
    if (step === 'postcopy') {
      // Pages come from a frozen original over a lane; a workload that is gone needs none.
      const served = this.#connection && this.source.up && this.source.steps.includes('serve')
      if (this.skeleton === 'running' && !(served && this.original === 'frozen')) return false
      this.drained = true
      if (this.differs) {
        forget()
        one.queue.push({ type: 'stepFailed', step, error: DIFFERS, neverRan: false })
        return true
      }
    }
    forget()
    if (step === 'prepare' && this.skeleton === 'none') this.skeleton = 'tied'
    one.queue.push({ type: 'stepDone', step: step as 'prepare' })
    return true
  }

  /** @returns false when the process was killed before. */
  #thaw(): boolean {
    if (this.skeleton === 'frozen' || this.skeleton === 'tied') {
      this.skeleton = 'running'
      this.everRan = true
    }
    return this.skeleton === 'running' || this.skeleton === 'exited'
  }

  #workloadExits(n: number): boolean {
    const exit = { kind: 'exited', value: 0 } as const
    if (this.original === 'running') {
      this.original = 'exited'
      if (this.source.up) this.source.queue.push({ type: 'workloadExited', exit })
      return true
    }
    if (this.skeleton !== 'running') return false
    this.skeleton = 'exited'
    // Killed as well, where it is known that it ran: that is no reason to call it lost.
    const known = this.destination.journal.some(({ type }) => type === 'running')
    this.#exit = known && n % 2 === 1 ? { kind: 'signaled', value: 15 } : exit
    if (this.destination.up) this.destination.queue.push({ type: 'workloadExited', exit: this.#exit })
    return true
  }

  #dial(n: number): boolean {
    const { source, destination } = this
    if (!this.#dialling || this.#connection || !source.up || !destination.up) return false
    const type = this.#dialling === 'connect' ? ('connected' as const) : ('reconnected' as const)
    this.#dialling = undefined
    // Messages of the old connection come once more, as if they had been held back somewhere.
    const again = n % 4 === 1 ? this.#old : { toSource: [], toDestination: [] }
    this.#connection = { toSource: [...again.toSource], toDestination: [...again.toDestination] }
    this.#old = { toSource: [], toDestination: [] }
    source.queue.push(type === 'connected' ? { type } : { type, lane: 'control' })
    destination.queue.push(type === 'connected' ? { type } : { type, lane: 'control' })
    return true
  }

  /** What is on the way is lost, or (n) some of it still arrives before the loss is noticed. */
  #break(n: number): boolean {
    const lost = this.#connection
    if (!lost) return false
    this.#connection = undefined
    this.#old = { toSource: lost.toSource.slice(-2), toDestination: lost.toDestination.slice(-2) }
    const { source, destination } = this
    if (source.up) {
      for (const message of lost.toSource.slice(0, n % 3)) source.queue.push({ type: 'message', message })
      source.queue.push({ type: 'laneLost', lane: 'control' })
    }
    if (destination.up) {
      for (const message of lost.toDestination.slice(0, n % 3)) {
        destination.queue.push({ type: 'message', message })
      }
      destination.queue.push({ type: 'laneLost', lane: 'control' })
    }
    return true
  }

  #crash(which: 'source' | 'destination'): boolean {
    const one: { up: boolean } = this[which]
    if (!one.up) return false
    Object.assign(one, { up: false, effects: [], urgent: [], queue: [], steps: [] })
    this.#break(2)
    if (which === 'source') {
      if (this.original === 'stopped') this.original = 'running'
    } else {
      this.#dialling = undefined
      if (this.skeleton === 'tied') this.skeleton = 'killed'
    }
    return true
  }

  #restartSource(): boolean {
    const one = this.source
    if (one.up) return false
    const { state, effects } = sourceStateFromJournal(one.journal, this.#mode)
    Object.assign(one, { up: true, state, effects: [...effects] })
    if (this.original === 'exited') {
      one.queue.push({ type: 'workloadExited', exit: { kind: 'exited', value: 0 } })
    }
    return true
  }

  #restartDestination(): boolean {
    const one = this.destination
    if (one.up) return false
    let after = destinationStateFromJournal(one.journal)
    if (this.#mutation.destinationRestart) after = this.#mutation.destinationRestart(after)
    Object.assign(one, { up: true, state: after.state, effects: [...after.effects] })
    if (this.skeleton === 'killed') {
      const exit = this.hostRestarted ? { kind: 'unknown' as const } : { kind: 'signaled' as const, value: 9 }
      one.queue.push({ type: 'workloadExited', exit })
    } else if (this.skeleton === 'exited') {
      one.queue.push({ type: 'workloadExited', exit: this.#exit })
    }
    return true
  }
}
