import {
  createLogger,
  type ErrorInfo,
  isKernelError,
  type Logger,
  PageferryError,
  RecordFile,
} from '@pageferry/base'
import {
  chooseScratch,
  exits,
  FileTable,
  readClocks,
  rehearse,
  requireCapabilities,
} from '@pageferry/checkpoint'
import {
  Driver,
  type FromSource,
  isFrozenForGood,
  type Outcome,
  type Phases,
  type SourceEffect,
  type SourceEvent,
  type SourceRecord,
  type SourceState,
  sourceStateFromJournal,
  sourceWorkloadAt,
  startSource,
  stepSource,
} from '@pageferry/migration'
import type { PageSet } from '@pageferry/pages'
import type { DumpRequest, Settings } from '@pageferry/service'
import {
  collectYoungGarbage,
  Inbox,
  StatusReporter,
  type WorkerChannel,
  type WorkerSpec,
  type WorkerStatus,
  workerPhases,
} from '@pageferry/service/worker'
import { type Frame, type FrameOf, WireError } from '@pageferry/wire'
import { asId, SourceLanes } from './lanes/lanes.js'
import { Push } from './lazy/push.js'
import { SentBitmap } from './lazy/sent-bitmap.js'
import { frameOf, messageOf } from './messages.js'
import { OriginalProcess } from './process.js'
import { SourceRecords } from './records.js'
import { ReportInProgress } from './report.js'
import { sendFinalRound } from './rounds/final-round.js'
import { contentsOf, dumpFrozen, type FrozenDump } from './rounds/frozen-dump.js'
import { Pacing } from './rounds/pacing.js'
import { type RoundsResult, runRounds } from './rounds/rounds.js'
import { HashServer } from './verify/hash-server.js'
import { keptError } from './verify/kept-original.js'

const connectTimeoutMs = 60_000
/** Longest that the push waits for Running: then the link is slow, and the pages had better be on their way. */
const pushHoldMs = 30

/**
 * The source's side of one migration: executes what the state machine in migration/source-machine.ts says.
 * At every moment the machine's state tells where the workload is; this class only carries it out.
 *
 *   OriginalProcess  the process, and what holds it
 *   SourceLanes      the connections
 *   SourceRecords    what a successor must know
 */
export class SourceWorker {
  readonly #spec: WorkerSpec<DumpRequest>
  readonly #channel: WorkerChannel
  /** Of the request, which the service has completed. */
  readonly #settings: Settings
  readonly #pacing: Pacing
  readonly #log: Logger
  readonly #journal: RecordFile
  readonly #driver: Driver<SourceState, SourceEvent, SourceEffect>
  readonly #status: StatusReporter
  readonly #phases: Phases
  readonly #records: SourceRecords
  readonly #original: OriginalProcess
  readonly #lanes: SourceLanes
  readonly #inbox = new Inbox()
  readonly #files = new FileTable()
  readonly #report: ReportInProgress
  #rounds: RoundsResult | null = null
  #lazy: PageSet | null = null
  /** Pages with contents in the final pagemap. */
  #contents: PageSet | null = null
  #hashes: HashServer | null = null
  /** First page of the scratch area; chosen before the freeze. */
  #scratch = 0
  /** Until it is saved. */
  #pagemap: Uint8Array | null = null
  #push: Push | null = null
  /** Calls it when the destination says so. */
  #running = (): void => {}
  readonly #isRunning = new Promise<void>((resolve) => {
    this.#running = resolve
  })

  constructor(spec: WorkerSpec<DumpRequest>, takeover: boolean, channel: WorkerChannel) {
    const { request } = spec
    this.#spec = spec
    this.#channel = channel
    this.#settings = request
    this.#pacing = new Pacing(this.#settings.maxBandwidthMbit)
    this.#log = createLogger('dump-worker').child({ migration: spec.id })
    this.#records = new SourceRecords(spec, channel)
    this.#report = new ReportInProgress(spec, this.#settings.mode, this.#records)
    this.#status = new StatusReporter(channel, { phase: 'prepare' }, () => this.#look())
    this.#phases = workerPhases({
      role: 'source',
      log: this.#log,
      status: this.#status,
      injectFault: request.injectFault,
      takeover,
    })
    this.#original = new OriginalProcess(request.pid, () => this.#exited())
    this.#lanes = new SourceLanes({
      spec,
      settings: this.#settings,
      log: this.#log,
      onFrame: (frame) => this.#onFrame(frame),
      onBatchesLost: (batches) => this.#push?.requeue(batches),
      onEvent: (event) => this.#driver.post(event),
    })
    this.#journal = RecordFile.open(`${spec.stateDir}/journal`)
    if (takeover) this.#adopt()
    if (this.#records.original.comm === undefined) this.#introduce()
    const first = takeover
      ? sourceStateFromJournal(this.#journal.records as SourceRecord[], this.#settings.mode)
      : startSource(this.#settings.mode)
    this.#driver = new Driver(first, {
      step: stepSource,
      execute: (effect, signal) => this.#execute(effect, signal),
      onState: () => this.#status.send(),
    })
    channel.onCancel(() => this.#driver.post({ type: 'cancel' }))
  }

  /** After kill -9 of the worker before. */
  #adopt(): void {
    // The machine learns it from the first event; there is no driver to post it to yet.
    if (!this.#original.adopt(this.#records.original)) queueMicrotask(() => this.#exited())
  }

  /** First of all: whatever happens from here on is told of a process with a name. */
  #introduce(): void {
    try {
      const { identity } = this.#original
      this.#report.noteWorkload({ comm: identity.comm, threads: identity.threads })
      void this.#records.save(identity)
    } catch {
      // The preparation will say that there is no such process.
    }
  }

  #exited(): void {
    this.#driver.post({ type: 'workloadExited', exit: { kind: 'unknown' } })
  }

  async #execute(effect: SourceEffect, signal: AbortSignal): Promise<void> {
    try {
      await this.#carryOut(effect, signal)
    } catch (error) {
      if (!isKernelError(error) || !(await exits(this.#original.pid, error))) throw error
      const { pid } = this.#original
      throw new PageferryError('WORKLOAD_EXITED', `process ${pid} has exited`, { cause: error })
    }
  }

  async #carryOut(effect: SourceEffect, signal: AbortSignal): Promise<void> {
    switch (effect.type) {
      case 'startPrepare':
        return this.#phases.run('prepare', () => this.#prepare())
      case 'startPrecopy':
        return this.#precopy(signal)
      case 'freezeWorkload':
        return this.#phases.run('freeze', () => this.#freeze())
      case 'startDump':
        return this.#dump(signal)
      case 'detachAndKeepFrozen':
        return this.#keepFrozen()
      case 'startServing':
        return this.#phases.run('serve', () => this.#serve(signal))
      case 'resumeWorkload':
        return this.#original.resume()
      case 'killOriginal':
        return this.#phases.run('release', () => this.#original.kill())
      case 'journal':
        return this.#phases.run('commit', () => this.#journal.append(effect.record))
      case 'send':
        return this.#send(effect.message)
      case 'deliver':
        return this.#deliver(effect.message)
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

  /** The workload runs and is not touched: a refusal costs it nothing. */
  async #prepare(): Promise<void> {
    requireCapabilities('source')
    const original = this.#original
    original.open()
    const { ports, url } = await this.#lanes.listen()
    const freezer = original.chooseFreezer(this.#spec.id)
    await this.#records.save({ ...original.identity, ports, freezer })
    this.#channel.send({
      type: 'listening',
      dataUrl: url,
      workload: this.#report.workloadIn(this.#driver.state, original),
    })
    // Also proves that this host can do it, before the workload is touched.
    if (!this.#channel.isRehearsed) await rehearse(this.#records.rehearsalDir, 'capture')
    const timer = setTimeout(() => {
      if (!this.#driver.state.connected)
        this.#driver.post({ type: 'timeout', what: 'the destination did not connect' })
    }, connectTimeoutMs)
    timer.unref()
  }

  async #precopy(signal: AbortSignal): Promise<void> {
    const tracker = this.#original.track(this.#spec.request.tracker)
    this.#log.info({ tracker: tracker.kind }, 'tracking')
    this.#rounds = await runRounds({
      original: this.#original,
      tracker,
      files: this.#files,
      lanes: this.#lanes,
      settings: this.#settings,
      pacing: this.#pacing,
      roundApplied: () => this.#inbox.next('roundApplied', signal),
      onRound: (report) => {
        this.#report.noteRound(report)
        const { round, pages } = report
        this.#status.show({ phase: 'round', round, pages, totalPages: pages }, true)
      },
      onProgress: (round, pages, totalPages) =>
        this.#status.show({ phase: 'round', round, pages, totalPages }),
      phase: (fn) => this.#phases.run('round', fn),
      signal,
    })
  }

  #freeze(): void {
    this.#records.createFiles()
    this.#chooseScratch()
    this.#status.beQuiet()
    collectYoungGarbage()
    const { threads } = this.#original.stop(() => this.#report.noteFreeze())
    this.#report.noteFrozen(threads.length)
  }

  async #dump(signal: AbortSignal): Promise<void> {
    const round = (this.#rounds?.lastRound ?? 0) + 1
    const dump = await this.#phases.run('capture', () => this.#capture(round))
    this.#report.noteCaptured(dump.final.counts)
    this.#lazy = dump.final.lazy
    this.#contents = contentsOf(dump.final)
    const original = this.#original
    await this.#phases.run('transfer', () =>
      sendFinalRound(dump, { original, lanes: this.#lanes, round, signal }),
    )
    this.#records.saveDumpEnd({ finalRound: round, report: this.#report.now(this.#lanes) })
  }

  /** On record before the area exists: a successor removes it. */
  #chooseScratch(): number {
    this.#scratch = chooseScratch(this.#original.pid)
    this.#records.saveScratch(this.#scratch)
    return this.#scratch
  }

  /** From the stop until its threads are themselves again. */
  #capture(round: number): FrozenDump {
    const dump = dumpFrozen({
      original: this.#original,
      files: this.#files,
      rounds: this.#rounds,
      hotPages: this.#spec.request.pushDelayMs ? 0 : undefined,
      mode: this.#settings.mode,
      scratch: this.#scratch,
      chooseScratch: () => this.#chooseScratch(),
      sendState: (images) => {
        for (const image of images) this.#lanes.sendImage(image, round)
        this.#lanes.sendRoundBegin(round, true)
      },
      sendMap: (image) => this.#lanes.sendImage(image, round),
    })
    this.#pagemap = dump.pagemap.bytes
    return dump
  }

  /** Needed by a successor from the commit on, so it is written while the destination restores. */
  #keepFrozen(): void {
    this.#original.keepFrozen()
    if (this.#pagemap !== null) this.#records.savePagemap(this.#pagemap)
    this.#pagemap = null
  }

  /** Frozen, until the machine says resume or kill. */
  async #serve(signal: AbortSignal): Promise<void> {
    await this.#listenAgain()
    const { pid, memFd } = this.#original
    const round = this.#records.finalRound + 1
    const lazy = this.#lazy ?? this.#records.lazyPages()
    const sent = new SentBitmap(lazy.runTable())
    const faults = this.#lanes.serveFaults({ pid, asId, round, sent: sent.shared })
    this.#push = new Push({
      pid,
      memFd,
      asId,
      round,
      sent,
      faults,
      history: this.#rounds?.history,
      lanes: this.#lanes.bulk,
      hold: { until: this.#isRunning, atMostMs: pushHoldMs },
      pushDelayMs: this.#spec.request.pushDelayMs,
      pacing: this.#pacing,
      log: this.#log,
    })
    await this.#push.run(signal)
  }

  /** After a takeover: on the ports that the destination knows. */
  async #listenAgain(): Promise<void> {
    const { ports } = this.#records
    if (!this.#lanes.isListening && ports !== undefined) await this.#lanes.listen(ports)
  }

  #onFrame(frame: Frame): void {
    switch (frame.type) {
      case 'running':
        this.#report.noteRunning()
        this.#running()
        this.#status.speak()
        break
      case 'hashRequest':
        // Changes nothing and belongs to no step: the machine does not hear of it.
        this.#answerHashes(frame)
        return
    }
    const message = messageOf(frame)
    if (message.type === 'drained' && message.error !== undefined) this.#keep(message.error)
    else this.#driver.post({ type: 'message', message })
  }

  /** @throws WireError OUT_OF_ORDER: the original runs, or is not needed any more */
  #answerHashes(frame: FrameOf<'hashRequest'>): void {
    if (!isFrozenForGood(this.#driver.state)) throw new WireError('OUT_OF_ORDER', 'HashRequest')
    const { pid, memFd, isGone } = this.#original
    // The machine says that it died.
    if (isGone) return
    this.#hashes ??= new HashServer({
      ...{ pid, memFd, asId, known: this.#contents ?? this.#records.contents() },
      send: (answer, payload, done) => this.#lanes.send(answer, payload, done),
    })
    try {
      this.#hashes.onRequest(frame)
    } catch (error) {
      if (!isKernelError(error, 'ESRCH')) throw error
    }
  }

  /** The destination could not prove the memory of what it runs. */
  #keep(error: ErrorInfo): void {
    const { pid, isGone } = this.#original
    const cause = keptError(error, { pid, isGone, freezer: this.#records.original.freezer })
    this.#log.error({ details: cause.details }, cause.message)
    this.#driver.post({ type: 'message', message: { type: 'drained', error: cause } })
  }

  #send(message: FromSource): void {
    // Nobody would hear it, and what some frames say can be read only while the process lives.
    if (!this.#lanes.isConnected) return
    this.#lanes.send(frameOf(message, this.#original, this.#settings))
  }

  #deliver(message: Extract<SourceEffect, { type: 'deliver' }>['message']): void {
    switch (message.type) {
      case 'clockRequest':
        this.#lanes.send({ type: 'clockReply', ...readClocks(this.#original.pid) })
        break
      case 'progress':
        this.#status.show({ phase: 'serve', pendingPages: message.pendingPages })
        break
      case 'roundApplied':
        this.#inbox.put(message)
    }
  }

  #look(): WorkerStatus {
    const { state } = this.#driver
    return {
      state: state.name,
      committed: ['handed-over', 'running-on-destination'].includes(sourceWorkloadAt(state)),
      workload: this.#report.workloadIn(state, this.#original),
      report: this.#report.now(this.#lanes),
    }
  }

  #finish(outcome: Outcome, error?: ErrorInfo): void {
    this.#report.noteOutcome(outcome)
    this.#status.end(outcome, error)
    // Not waited for: meanwhile the machine answers a peer that missed the last word.
    void this.#leave()
  }

  async #leave(): Promise<void> {
    // From DumpEnd on the destination may hold a complete, frozen copy, and it keeps that until it hears from us.
    if (this.#lanes.isConnected || this.#records.dumpEnd !== null) {
      const left = this.#lanes.hungUp()
      await this.#listenAgain().catch((cause: Error) =>
        this.#log.warn(`the destination is not answered: ${cause.message}`),
      )
      await left
    }
    this.#driver.stop()
    this.#lanes.close()
    this.#journal.close()
    this.#original.close()
    this.#channel.exit(0)
  }
}
