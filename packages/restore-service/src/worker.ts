import { performance } from 'node:perf_hooks'
import {
  createLogger,
  type ErrorInfo,
  type Logger,
  PageferryError,
  RecordFile,
  toErrorInfo,
} from '@pageferry/base'
import { ProcessImages, readStat, rehearse } from '@pageferry/checkpoint'
import { Heir } from '@pageferry/kernel'
import {
  type DestinationEffect,
  type DestinationEvent,
  type DestinationReport,
  type DestinationState,
  Driver,
  destinationStateFromJournal,
  type Outcome,
  type Phases,
  type RoundFrame,
  startDestination,
  stepDestination,
  type ToDestination,
  takesRoundFrame,
  type VerifySetting,
  type WorkloadExit,
} from '@pageferry/migration'
import { LazyMap } from '@pageferry/pages'
import type { RestoreRequest } from '@pageferry/service'
import {
  type Holds,
  Inbox,
  StatusReporter,
  type WorkerChannel,
  type WorkerSpec,
  workerPhases,
} from '@pageferry/service/worker'
import { type Frame, type FrameOf, frameToError, isFrameOn, WireError } from '@pageferry/wire'
import { checkAdmission, clockOffsets } from './admission.js'
import { openHolds } from './holds.js'
import { DestinationLanes } from './lanes/lanes.js'
import { AddressSpace } from './lazy/address-space.js'
import { type Family, holdSkeleton } from './lazy/adopt.js'
import { appointHeir, dismissHeir, inheritSpaces } from './lazy/heir.js'
import { LazyPhase } from './lazy/phase.js'
import { frameOf, type WordFacts } from './outgoing.js'
import { RestoredProcess } from './process.js'
import { DestinationRecords } from './records.js'
import { destinationStatus, emptyReport } from './report.js'
import { ImageReceiver } from './rounds/images.js'
import { type FinalSets, RoundReceiver } from './rounds/receiver.js'
import { StoredImages } from './rounds/stored-images.js'
import { watchSilence } from './timeouts.js'
import { Verifier } from './verify/verifier.js'

/** The as_id of the workload's root. */
const rootAsId = 1

/**
 * The destination's side of one migration: executes what the state machine in migration/destination-machine.ts says.
 * The workload's process belongs to its keeper; this worker may die at any moment and its successor takes over from
 * the journal, the keeper and the records.
 */
export class DestinationWorker {
  readonly #spec: WorkerSpec<RestoreRequest>
  readonly #channel: WorkerChannel
  readonly #log: Logger
  readonly #journal: RecordFile
  readonly #records: DestinationRecords
  readonly #report: DestinationReport
  readonly #status: StatusReporter
  readonly #phases: Phases
  readonly #driver: Driver<DestinationState, DestinationEvent, DestinationEffect>
  readonly #lanes: DestinationLanes
  readonly #holds: Holds
  readonly #process: RestoredProcess
  readonly #inbox = new Inbox()
  readonly #images = new ProcessImages()
  readonly #imageReceiver: ImageReceiver
  readonly #stored: StoredImages | null
  readonly #rounds: RoundReceiver
  #begin: FrameOf<'begin'> | null = null
  #verifier: Verifier | null = null
  /** The address spaces with lazy pages, from the restore on; those of a worker before this one are with the keeper. */
  #spaces: ReadonlyMap<number, Family> | null = null
  #lazy: LazyPhase | null = null
  /** From before the first fault until the last page: see lazy/heir.ts. */
  #heir: Heir | null = null
  #readyParts: Record<string, number> = {}

  constructor(spec: WorkerSpec<RestoreRequest>, takeover: boolean, channel: WorkerChannel) {
    this.#spec = spec
    this.#channel = channel
    const { id, token, stateDir, request } = spec
    const log = createLogger('restore-worker').child({ migration: id })
    this.#log = log
    this.#records = new DestinationRecords(channel, spec)
    this.#report = this.#records.known.report ?? emptyReport()
    this.#holds = openHolds(stateDir)
    this.#process = new RestoredProcess({
      directory: stateDir,
      holds: this.#holds,
      onExit: (exit) => this.#onExit(exit),
    })
    this.#status = new StatusReporter(channel, { phase: 'connect' }, () =>
      destinationStatus(this.#driver.state, this.#process, this.#records.known, this.#report),
    )
    const { injectFault, imagesDir } = request
    this.#phases = workerPhases({ role: 'destination', log, status: this.#status, injectFault, takeover })
    this.#stored = imagesDir === undefined || takeover ? null : new StoredImages(imagesDir)
    this.#imageReceiver = new ImageReceiver((name, bytes) => {
      this.#images.set(name, bytes)
      this.#stored?.store(name, bytes)
      this.#rounds.imageCame(name)
    })
    const source = { url: request.source, migrationId: id, token }
    this.#lanes = new DestinationLanes(source, this.#records.known, log, {
      onFrame: (frame, payload) => this.#onFrame(frame, payload),
      onLost: (lane, index) => this.#driver.post({ type: 'laneLost', lane, index }),
      onRedialled: (lane, index) => {
        if (lane === 'control') this.#verifier?.reconnected()
        this.#driver.post({ type: 'reconnected', lane, index })
      },
      onPeerUnknown: () => this.#driver.post({ type: 'peerUnknown' }),
    })
    this.#rounds = new RoundReceiver(this.#images, this.#lanes.bulk, {
      onRoundApplied: (frame) => this.#lanes.send(frame),
      onFinalMap: () => this.#beginRestore(),
      onFinalPagemap: (sets) => this.#noteLazy(sets),
      onRoundFailed: (error) =>
        this.#driver.post({ type: 'stepFailed', step: 'prepare', error: error.toInfo() }),
    })
    this.#journal = RecordFile.open(`${stateDir}/journal`)
    const records = this.#journal.records as { type: string }[]
    if (takeover) {
      this.#process.adopt(this.#records.known)
      this.#verifier = this.#verifierFor(this.#records.known.verify)
    }
    this.#driver = new Driver(takeover ? destinationStateFromJournal(records) : startDestination(), {
      step: stepDestination,
      execute: (effect, signal) => this.#execute(effect, signal),
      onState: () => this.#status.send(),
    })
    channel.onCancel(() => this.#driver.post({ type: 'cancel' }))
    watchSilence(
      () => ({ state: this.#driver.state, isConnected: this.#lanes.isConnected }),
      (what) => this.#driver.post({ type: 'timeout', what }),
    )
  }

  get #facts(): WordFacts {
    return { pid: this.#process.pid, report: this.#report, readyParts: this.#readyParts }
  }

  get #rehearsalDir(): string {
    return `${this.#spec.stateDir}/rehearsal`
  }

  /** --verify; null: nobody asked for it. In a successor it goes on with what is on record. */
  #verifierFor(when: VerifySetting = 'off'): Verifier | null {
    if (when === 'off') return null
    const logPath = `${this.#spec.stateDir}/hashes`
    const asId = this.#begin?.asId ?? rootAsId
    const send = (frame: Frame): void => this.#lanes.send(frame)
    return new Verifier({ when, asId, logPath, send }, this.#report.verify)
  }

  #onExit(exit: WorkloadExit): void {
    this.#driver.post({ type: 'workloadExited', exit })
    this.#lazy?.processGone(rootAsId)
  }

  async #execute(effect: DestinationEffect, signal: AbortSignal): Promise<void> {
    switch (effect.type) {
      case 'connect':
        return this.#phases.run('connect', () => this.#connect())
      case 'startPrepare':
        return this.#phases.run('skeleton', () => this.#prepare(signal))
      case 'startRestore':
        return this.#restore(signal)
      case 'detachSkeleton':
        this.#process.release()
        return
      case 'thawSkeleton':
        return this.#phases.run('resume', () => this.#thaw())
      case 'startPostcopy':
        await this.#phases.run('postcopy', () => this.#runPostcopy(signal))
        return this.#phases.run('verify', () => this.#prove(signal))
      case 'discardSkeleton':
        this.#process.discard()
        return
      case 'reconnect':
        this.#lanes.redial(effect.lane, effect.index)
        return
      case 'journal':
        this.#journal.append(effect.record, effect.unsynced !== true)
        return
      case 'send':
        this.#lanes.send(frameOf(effect.message, this.#facts))
        return
      case 'deliver':
        this.#inbox.put(effect.message)
        return
      case 'error':
        this.#log.warn({ code: effect.error.code }, effect.error.message)
        return
      case 'restart':
        this.#log.error({ code: effect.error.code }, `starting anew: ${effect.error.message}`)
        this.#channel.exit(1)
        return
      case 'finish':
        return this.#finish(effect.outcome, effect.error)
    }
  }

  async #connect(): Promise<void> {
    await this.#records.keep(await this.#lanes.connectControl())
    await this.#lanes.connectPages()
    this.#driver.post({ type: 'connected' })
  }

  #onFrame(frame: Frame, payload: Uint8Array): void {
    if (!isFrameOn(frame, 'control', 'to-destination')) {
      throw new WireError('OUT_OF_ORDER', `${frame.type} does not belong here`)
    }
    switch (frame.type) {
      case 'image':
      case 'roundBegin':
      case 'roundEnd':
        if (takesRoundFrame(this.#driver.state, frame.type)) this.#onRoundFrame(frame, payload)
        return
      case 'pageHashes':
        if (this.#verifier === null) throw new PageferryError('PROTOCOL', 'hashes that nobody asked for')
        this.#verifier.answered(frame, payload)
        return
      case 'failed':
        this.#verifier?.originalLost(PageferryError.fromInfo(frameToError(frame)))
        this.#post({ type: frame.type, error: frameToError(frame) })
        return
      case 'cancel':
        this.#post({ type: frame.type, error: frameToError(frame) })
        return
      case 'welcome':
      case 'refusal':
        throw new WireError('OUT_OF_ORDER', `${frame.type} after Welcome`)
      case 'begin':
        this.#begin = frame
    }
    this.#post(frame)
  }

  /** Data of a round, past the machine: see destination-machine.ts. */
  #onRoundFrame(frame: RoundFrame, payload: Uint8Array): void {
    switch (frame.type) {
      case 'image':
        this.#imageReceiver.add(frame, payload)
        break
      case 'roundBegin':
        if (frame.final) this.#status.beQuiet()
        this.#rounds.begin(frame)
        break
      case 'roundEnd':
        this.#rounds.end(frame)
    }
  }

  #post(message: ToDestination): void {
    this.#driver.post({ type: 'message', message })
  }

  async #prepare(signal: AbortSignal): Promise<void> {
    const begin = this.#begin
    if (begin === null) throw new PageferryError('INTERNAL', 'no Begin')
    checkAdmission(begin)
    // Before the rehearsal, which then writes the pages that the freeze will write: of a spare worker, too, in one pass.
    this.#heir = Heir.start()
    // Also proves that this host can do it, before the workload is touched.
    await rehearse(this.#rehearsalDir, 'restore', this.#channel.isRehearsed ? { passes: 1 } : {})
    signal.throwIfAborted()
    const offsets = await clockOffsets(begin, () => {
      this.#lanes.send({ type: 'clockRequest' })
      return this.#inbox.next('clockReply', signal)
    })
    const { pid: nsPid, comm, tids, verify } = begin
    this.#verifier = this.#verifierFor(verify)
    this.#verifier?.createLog()
    await this.#records.keep({ nsPid, comm, threads: tids.length, verify })
    const newPidNamespace = this.#spec.request.newPidNamespace === true
    const { restorer, keeper } = await this.#process.create({
      id: this.#spec.id,
      nsPid,
      newPidNamespace,
      clockOffsets: offsets,
    })
    appointHeir(keeper, this.#heir)
    holdSkeleton(keeper, begin.asId, restorer.uffd)
    this.#records.createFile()
    this.#rounds.fillSkeleton(restorer, begin.asId, this.#verifier?.roundLog)
    const all = this.#phases.run('receive', () => this.#rounds.finalSets(signal))
    all.catch((cause: unknown) => {
      if (signal.aborted) return
      this.#driver.post({ type: 'stepFailed', step: 'prepare', error: toErrorInfo(cause) })
    })
  }

  /** What needs no page: the source looks through the memory meanwhile, and sends the last ones. */
  #beginRestore(): void {
    const { restorer } = this.#process
    if (restorer === null) throw new PageferryError('INTERNAL', 'no skeleton')
    restorer.beginState(this.#images)
  }

  #noteLazy(sets: FinalSets): void {
    const { restorer, keeper } = this.#process
    if (restorer === null || keeper === null) throw new PageferryError('INTERNAL', 'no skeleton')
    const map = new LazyMap(sets.lazy.clone(), restorer.map.registered.clone())
    const asId = this.#begin?.asId ?? rootAsId
    const space = AddressSpace.create(keeper, asId, restorer.uffd, { lazy: map, unsettled: [] })
    this.#spaces = new Map([[asId, [space]]])
    // Meanwhile the last pages are on their way.
    this.#verifier?.checkAbsent(restorer, sets)
  }

  /** Afterwards the skeleton is the workload, frozen at the instruction where the original stands. */
  async #restore(signal: AbortSignal): Promise<void> {
    const { restorer } = this.#process
    if (restorer === null) throw new PageferryError('INTERNAL', 'no skeleton')
    const sets = await this.#rounds.finalSets(signal)
    const began = performance.now()
    await this.#phases.run('reconcile', () => this.#verifier?.checkSkeleton(restorer, sets, signal))
    if (this.#verifier !== null) this.#report.verify = this.#verifier.report
    const { pid, memFd } = restorer.skeleton
    this.#stored?.storePages({ pid, memFd, nsPid: restorer.nsPid }, sets)
    const verified = performance.now()
    await this.#phases.run('restore', () => {
      restorer.finishState(this.#images)
      this.#process.freeze()
    })
    this.#report.blackout.restoreMs = performance.now() - began // for a successor, who does not see the rest
    const { nrThreads } = readStat(pid)
    this.#records.saveRestore({
      ...{ pid, threads: nrThreads },
      ...{ finalRound: this.#rounds.round, report: this.#report },
    })
    const ended = performance.now()
    this.#report.blackout.restoreMs = ended - began
    this.#readyParts = { verifyMs: verified - began, stateMs: ended - verified }
  }

  /** Its first faults wait until Postcopy starts, which is next. */
  #thaw(): void {
    const began = performance.now()
    this.#process.thaw()
    this.#report.blackout.resumeMs = performance.now() - began
  }

  async #runPostcopy(signal: AbortSignal): Promise<void> {
    const { keeper, restorer } = this.#process
    // It ends with the last process of the tree: then nobody needs a page any more.
    if (keeper === null) return
    const takenOver = this.#spaces === null
    const spaces = this.#spaces ?? inheritSpaces(keeper, this.#log)
    if (takenOver) {
      this.#heir = Heir.start()
      appointHeir(keeper, this.#heir)
    }
    const totalPages = [...spaces.values()].flat().reduce((sum, { lazy }) => sum + lazy.pendingCount, 0)
    const round = (this.#records.known.finalRound ?? 1) + 1
    const members = new Map(
      [...spaces].map(([asId, family]) => {
        return [asId, { spaces: family, verifier: this.#verifier, process: this.#process }] as const
      }),
    )
    const phase = new LazyPhase({
      members,
      takenOver,
      round,
      prefetch: this.#spec.request.prefetch !== false,
      log: this.#log,
      onProgress: (pendingPages, faults, installedPages) => {
        this.#lanes.send({ type: 'progress', pendingPages, faults, installedPages })
        this.#status.show({ phase: 'postcopy', pendingPages, totalPages })
      },
      onForkRead: () => this.#phases.reach('fork-event'),
      freezer: this.#process,
      lane: this.#lanes.fault,
    })
    this.#lazy = phase
    this.#lanes.fault.receive(phase)
    const running = phase.run(signal)
    this.#status.speak()
    for (const [asId, [workload]] of spaces) {
      const { uffd, gate } = workload
      if (gate === null) continue
      const hashLog = this.#verifier?.lazyLog
      const target = { kind: 'lazy', asId, round, uffd, gate: gate.buffer, hashLog } as const
      this.#lanes.bulk.openLazy(target, phase)
    }
    if (this.#process.exit !== undefined) phase.processGone(rootAsId)
    await running
    Object.assign(this.#report, phase.report)
    phase.release()
    if (this.#heir !== null) dismissHeir(keeper, this.#heir)
    restorer?.skeleton.close()
  }

  /** The workload runs on its own now; the frozen original waits for this. */
  async #prove(signal: AbortSignal): Promise<void> {
    if (this.#verifier === null) return
    try {
      await this.#verifier.prove(signal)
    } catch (error) {
      if (!signal.aborted) this.#log.error({ verify: this.#verifier.report }, (error as Error).message)
      throw error
    } finally {
      this.#report.verify = this.#verifier.report
    }
  }

  async #finish(outcome: Outcome, error?: ErrorInfo): Promise<void> {
    const cause = this.#status.end(outcome, error)
    this.#verifier?.removeLog()
    if (cause !== null && outcome === 'discarded' && !this.#lanes.isConnected) {
      await this.#lanes.sayFailed(cause)
    }
    // Not awaited: while the lane closes, the machine still answers what the source may have missed.
    void this.#lanes.close().then(() => {
      this.#driver.stop()
      this.#journal.close()
      this.#holds.close()
      this.#process.close()
      this.#channel.exit(0)
    })
  }
}
