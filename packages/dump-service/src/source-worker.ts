import { closeSync, existsSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { performance } from 'node:perf_hooks'
import {
  createLogger,
  type ErrorInfo,
  isKernelError,
  type KernelErrorLike,
  type Logger,
  PageferryError,
  RecordFile,
} from '@pageferry/base'
import {
  chooseScratch,
  clocksOf,
  endRehearsal,
  FileTable,
  Freezer,
  type FreezerRecord,
  hasExited,
  hasUntrackedWriters,
  hostFacts,
  type NamedImage,
  neededFiles,
  openTracker,
  type Preflight,
  preflight,
  readClocks,
  readStat,
  readStatus,
  rehearse,
  removeLeftovers,
  requireCapabilities,
  StoppedProcess,
  type Tracker,
} from '@pageferry/checkpoint'
import { fds, Poller } from '@pageferry/kernel'
import type { FinalPagemap } from '@pageferry/memory'
import {
  Driver,
  type Message,
  type Outcome,
  Phases,
  parseFault,
  parseSettings,
  type Settings,
  type SourceEffect,
  type SourceEvent,
  type SourceReport,
  type SourceState,
  sourceStateFromJournal,
  startSource,
  stepSource,
} from '@pageferry/migration'
import type { DumpRequest } from '@pageferry/service'
import { Inbox, type Lane, type WorkerChannel, type WorkerSpec } from '@pageferry/service/worker'
import {
  errorToFrame,
  type Frame,
  type FrameOf,
  frameToError,
  imagePieceBytes,
  WireError,
} from '@pageferry/wire'
import { BulkLane } from './bulk-lane.js'
import { dumpFrozen, lazyFromImage } from './frozen-dump.js'
import { sendHashes } from './hash-sender.js'
import { LaneServer } from './lane-server.js'
import { PageReader } from './page-reader.js'
import { sendPages } from './page-sender.js'
import { type RoundsResult, runRounds } from './rounds.js'
import { Serving } from './serving.js'

/** There is one process per migration yet. */
const asId = 1
/** How long the destination may be silent before the commit. */
const lingerMs = 30_000
const connectTimeoutMs = 60_000
/** A process of many GiB takes its time to end. */
const exitTakesMs = 2_000

/** What must be known after kill -9 of this worker, in spec.records. */
interface SourceRecords {
  port?: number
  /** Ticks since boot: with the pid it names the process. */
  startTime?: string
  nsPid?: number
  freezer?: FreezerRecord
  report?: SourceReport
  finalRound?: number
}

/**
 * The source's side of one migration: executes what the state machine in migration/source-machine.ts says.
 * At every moment the machine's state tells where the workload is; this class only carries it out.
 */
export class SourceWorker {
  readonly #spec: WorkerSpec<DumpRequest>
  readonly #channel: WorkerChannel
  readonly #settings: Settings
  readonly #log: Logger
  readonly #journal: RecordFile
  readonly #driver: Driver<SourceState, SourceEvent, SourceEffect>
  readonly #phases: Phases
  readonly #inbox = new Inbox()
  readonly #pid: number
  readonly #files = new FileTable()
  readonly #bulk: BulkLane[]
  readonly #records: SourceRecords
  readonly #startedAt = performance.now()
  readonly #report: SourceReport
  readonly #takenOver: boolean
  #nsPid: number
  #preflight: Preflight | null = null
  #server: LaneServer | null = null
  #control: Lane | null = null
  #lanesUp = new Set<string>()
  #pidfd = -1
  #exitPoller: Poller | null = null
  #memFd = -1
  #tracker: Tracker | null = null
  #untracked = false
  #rounds: RoundsResult | null = null
  #stopped: StoppedProcess | null = null
  #freezer: Freezer | null = null
  #frozenAt = 0
  #final: FinalPagemap | null = null
  #serving: Serving | null = null
  #progress: { phase: string; [key: string]: unknown } = { phase: 'prepare' }
  #lastStatusAt = 0

  constructor(spec: WorkerSpec<DumpRequest>, takeover: boolean, channel: WorkerChannel) {
    this.#spec = spec
    this.#channel = channel
    this.#settings = parseSettings(spec.request)
    this.#log = createLogger('dump-worker').child({ migration: spec.id })
    this.#pid = spec.request.pid
    this.#bulk = Array.from({ length: this.#settings.bulkLanes }, () => new BulkLane())
    this.#records = Object.assign({}, ...spec.records)
    this.#nsPid = this.#records.nsPid ?? this.#pid
    this.#report = this.#records.report ?? {
      id: spec.id,
      mode: this.#settings.mode,
      outcome: 'resumed',
      workload: { pid: this.#pid, comm: '', threads: 0 },
      rounds: [],
      pages: { present: 0, parent: 0, lazy: 0, zero: 0, hole: 0 },
      bytesOnWire: 0,
      blackoutMs: 0,
      totalMs: 0,
      blackout: { freezeMs: 0, captureMs: 0 },
    }
    const { injectFault } = spec.request
    this.#phases = new Phases(
      {
        now: () => performance.now(),
        sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
        crash: () => process.kill(process.pid, 'SIGKILL'),
        onStart: (phase) => this.#show({ phase }),
        onEnd: ({ phase, durationMs, error }) =>
          this.#log.info({ phase, durationMs, error: error?.message }, 'phase ended'),
      },
      // A fault strikes once: the worker that takes over after a crash must be able to succeed.
      injectFault === undefined || takeover ? [] : [parseFault(injectFault, 'source')],
    )
    this.#journal = RecordFile.open(`${spec.stateDir}/journal`)
    const records = this.#journal.records as { type: string }[]
    this.#takenOver = takeover
    if (takeover) this.#adopt()
    const first = takeover
      ? sourceStateFromJournal(records, this.#settings.mode)
      : startSource(this.#settings.mode)
    this.#driver = new Driver(first, {
      step: stepSource,
      execute: (effect, signal) => this.#execute(effect, signal),
      onState: (state) => this.#onState(state),
    })
    channel.onCancel(() => this.#driver.post({ type: 'cancel' }))
  }

  /** After kill -9 of the worker before: what the workload looks like, and who waits at the door. */
  #adopt(): void {
    if (this.#records.freezer !== undefined) this.#freezer = new Freezer(this.#records.freezer)
    try {
      Object.assign(this.#records, JSON.parse(readFileSync(this.#finalFile, 'utf8')))
      Object.assign(this.#report, this.#records.report)
    } catch {
      // The dump was not complete.
    }
    endRehearsal(this.#rehearsalDir)
    try {
      this.#openProcess()
      // Another process by now: a pid comes again.
      const { startTime } = this.#records
      if (startTime !== undefined && String(readStat(this.#pid).startTime) !== startTime)
        this.#forgetProcess()
      if (this.#pidfd < 0) throw new PageferryError('NO_SUCH_PROCESS', `process ${this.#pid} is gone`)
    } catch {
      // It is gone; `#openProcess` has posted nothing, so the machine learns it from the first event.
      queueMicrotask(() => this.#driver.post({ type: 'workloadExited', exit: { kind: 'unknown' } }))
    }
  }

  get #rehearsalDir(): string {
    return `${this.#spec.stateDir}/rehearsal`
  }

  #forgetProcess(): void {
    this.#exitPoller?.close()
    this.#exitPoller = null
    closeSync(this.#memFd)
    closeSync(this.#pidfd)
    this.#memFd = -1
    this.#pidfd = -1
  }

  #openProcess(): void {
    this.#pidfd = fds.pidfdOpen(this.#pid)
    this.#memFd = openSync(`/proc/${this.#pid}/mem`, 'r+')
    this.#exitPoller = new Poller(this.#pidfd, () => {
      this.#exitPoller?.close()
      this.#exitPoller = null
      this.#driver.post({ type: 'workloadExited', exit: { kind: 'unknown' } })
    })
  }

  async #execute(effect: SourceEffect, signal: AbortSignal): Promise<void> {
    try {
      await this.#carryOut(effect, signal)
    } catch (error) {
      // A round reads /proc in many places; each fails in its own way when the process ends meanwhile.
      if (!isKernelError(error) || !(await this.#exits(error))) throw error
      throw new PageferryError('WORKLOAD_EXITED', `process ${this.#pid} has exited`, { cause: error })
    }
  }

  /** ESRCH comes as soon as the memory is gone, which is a moment before the process is a zombie. */
  async #exits(error: KernelErrorLike): Promise<boolean> {
    const deadline = performance.now() + (error.code === 'ESRCH' ? exitTakesMs : 0)
    while (!hasExited(this.#pid)) {
      if (performance.now() >= deadline) return false
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
    return true
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
        return this.#serve(signal)
      case 'resumeWorkload':
        return this.#resume()
      case 'killOriginal':
        return this.#kill()
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

  async #prepare(): Promise<void> {
    requireCapabilities('source')
    const result = preflight(this.#pid)
    if (result.problems.length > 0) {
      throw new PageferryError(
        'REFUSED',
        `process ${this.#pid} (${result.workload.comm}) cannot be moved: ${result.problems
          .map(({ what, reason }) => `${what}: ${reason}`)
          .join('; ')}`.slice(0, 2000),
        { details: { problems: result.problems } },
      )
    }
    this.#preflight = result
    this.#report.workload = { pid: this.#pid, comm: result.workload.comm, threads: result.workload.threads }
    this.#nsPid = readStatus(this.#pid).nsPids.at(-1) ?? this.#pid
    this.#openProcess()
    await this.#listen(0)
    // A host without a freezer is refused now, and a successor knows the cgroup before it exists: nothing is
    // waited for when the workload stands still.
    const freezer = Freezer.forProcess(this.#pid, this.#spec.id)
    this.#records.freezer = freezer.record
    const startTime = String(readStat(this.#pid).startTime)
    await this.#channel.record({
      port: this.#server?.port,
      nsPid: this.#nsPid,
      startTime,
      freezer: freezer.record,
    })
    this.#channel.send({
      type: 'listening',
      dataUrl: this.#server?.url ?? '',
      workload: { ...this.#report.workload, where: 'running' },
    })
    // Also proves that this host can do it, before the workload is touched.
    await rehearse(this.#rehearsalDir, 'capture')
    const timer = setTimeout(() => {
      if (!this.#driver.state.connected)
        this.#driver.post({ type: 'timeout', what: 'the destination did not connect' })
    }, connectTimeoutMs)
    timer.unref()
  }

  async #listen(port: number): Promise<void> {
    this.#server = await LaneServer.listen({
      host: this.#spec.host,
      port,
      migrationId: this.#spec.id,
      token: this.#spec.token,
      nrBulkLanes: this.#bulk.length,
      onLane: (lane, resumed) => this.#onLane(lane, resumed),
    })
  }

  #onLane(lane: Lane, resumed: boolean): void {
    const { kind, index } = lane
    lane.open({
      onFrame: (frame, payload) => this.#onFrame(lane, frame, payload),
      onLost: (error) => {
        this.#log.info(error.message)
        if (kind === 'control' && this.#control === lane) {
          this.#control = null
          // Only a lane that was there after the end can have carried the last word.
          if (this.#whenHeard !== null) setTimeout(this.#whenHeard, hangUpMs)
        }
        if (kind === 'bulk') this.#serving?.requeue(this.#bulk[index].lost())
        this.#driver.post({ type: 'laneLost', lane: kind, index })
      },
    })
    if (kind === 'control') this.#control = lane
    if (kind === 'bulk') {
      this.#serving?.requeue(this.#bulk[index].lost())
      this.#bulk[index].attach(lane)
    }
    if (kind === 'fault') this.#faultLane = lane
    if (resumed) {
      this.#driver.post({ type: 'reconnected', lane: kind, index })
      return
    }
    this.#lanesUp.add(`${kind}:${index}`)
    if (this.#lanesUp.size === 2 + this.#bulk.length) this.#driver.post({ type: 'connected' })
  }

  #faultLane: Lane | null = null

  #onFrame(lane: Lane, frame: Frame, _payload: Uint8Array): void {
    switch (frame.type) {
      case 'batchAck':
        this.#bulk[lane.index].acknowledge(frame.sequence)
        return
      case 'pageRequest':
      case 'discard':
        if (this.#serving === null)
          throw new WireError('OUT_OF_ORDER', `${frame.type} before the workload was handed over`)
        this.#serving.onFrame(lane, frame)
        return
      case 'failed':
        this.#driver.post({ type: 'message', message: { type: 'failed', error: frameToError(frame) } })
        return
      case 'cancel':
        this.#driver.post({ type: 'message', message: { type: 'cancel', error: frameToError(frame) } })
        return
      case 'abandoned':
        this.#driver.post({ type: 'message', message: { type: 'abandoned', reason: frame.reason } })
        return
      case 'running':
        if (this.#report.blackoutMs === 0 && this.#frozenAt !== 0) {
          this.#report.blackoutMs = performance.now() - this.#frozenAt
        }
        this.#driver.post({ type: 'message', message: { type: 'running', frame } })
        return
      case 'drained':
        this.#driver.post({ type: 'message', message: { type: 'drained', frame } })
        return
      default:
        this.#driver.post({ type: 'message', message: { type: frame.type as Message['type'], frame } })
    }
  }

  #send(message: Message): void {
    switch (message.type) {
      case 'begin':
        this.#control?.send(this.#beginFrame())
        return
      case 'dumpEnd':
        this.#control?.send({ type: 'dumpEnd', freezeMonotonicNs: clocksOf(this.#pid).monotonicNs })
        return
      case 'commit':
      case 'released':
        this.#control?.send({ type: message.type })
        return
      case 'cancel':
      case 'failed':
        this.#control?.send(errorToFrame(message.type, message.error as ErrorInfo))
        return
      default:
        throw new PageferryError('INTERNAL', `the source does not send ${message.type}`)
    }
  }

  #beginFrame(): Frame {
    const workload = this.#preflight?.workload
    const clocks = clocksOf(this.#pid)
    return {
      type: 'begin',
      source: hostFacts(),
      asId,
      pid: this.#nsPid,
      comm: workload?.comm ?? '',
      tids: [this.#nsPid],
      residentPages: workload?.residentPages ?? 0,
      mode: this.#settings.mode,
      verify: this.#settings.verify,
      files: neededFiles(this.#pid),
      ...clocks,
    }
  }

  #deliver(message: Message): void {
    const frame = message.frame as Frame | undefined
    if (message.type === 'clockRequest') {
      this.#control?.send({ type: 'clockReply', ...readClocks(this.#pid) })
    } else if (message.type === 'progress') {
      const { pendingPages } = frame as FrameOf<'progress'>
      this.#show({ phase: 'serve', pendingPages })
    } else if (frame !== undefined) this.#inbox.put(frame)
  }

  async #precopy(signal: AbortSignal): Promise<void> {
    this.#tracker = openTracker(this.#pid, this.#spec.request.tracker)
    this.#log.info({ tracker: this.#tracker.kind }, 'tracking')
    this.#rounds = await runRounds({
      pid: this.#pid,
      nsPid: this.#nsPid,
      asId,
      memFd: this.#memFd,
      tracker: this.#tracker,
      files: this.#files,
      lanes: this.#bulk,
      maxRounds: this.#settings.maxRounds,
      maxDowntimeMs: this.#settings.maxDowntimeMs,
      sendImage: (image, round) => this.#sendImage(image, round),
      sendRoundBegin: (round) => this.#control?.send({ type: 'roundBegin', asId, round, final: false }),
      sendRoundEnd: (round, batchesPerLane) =>
        this.#control?.send({ type: 'roundEnd', asId, round, final: false, batchesPerLane }),
      roundApplied: () => this.#inbox.next('roundApplied', signal),
      onRound: (round) => {
        this.#untracked ||= hasUntrackedWriters(this.#pid)
        this.#report.rounds.push(round)
        this.#show({ phase: 'round', round: round.round, pages: round.pages, totalPages: round.pages }, true)
      },
      onProgress: (round, pages, totalPages) => this.#show({ phase: 'round', round, pages, totalPages }),
      phase: (fn) => this.#phases.run('round', fn),
      signal,
    })
  }

  #freeze(): void {
    this.#frozenAt = performance.now()
    this.#stopped = StoppedProcess.stop(this.#pid, 'all')
    this.#report.workload.threads = this.#stopped.threads.length
    this.#report.blackout.freezeMs = performance.now() - this.#frozenAt
  }

  async #dump(signal: AbortSignal): Promise<void> {
    const stopped = this.#stopped
    if (stopped === null) throw new PageferryError('INTERNAL', 'dump without a freeze')
    const round = (this.#rounds?.lastRound ?? 0) + 1
    const { final, images, pagemap, map } = await this.#phases.run('capture', () => this.#capture(stopped))
    this.#final = final
    this.#report.blackout.captureMs = performance.now() - this.#frozenAt - this.#report.blackout.freezeMs
    this.#report.pages = { ...final.counts }
    await this.#phases.run('transfer', async () => {
      for (const image of [...images, pagemap]) this.#sendImage(image, round)
      this.#control?.send({ type: 'roundBegin', asId, round, final: true })
      const reader = new PageReader(this.#pid, this.#memFd, null)
      const sent = await sendPages(final.present, reader, this.#bulk, {
        asId,
        round,
        map,
        final: true,
        signal,
      })
      if (this.#settings.verify) {
        const all = final.parent.clone().union(final.lazy).union(final.present)
        await sendHashes(
          all,
          this.#pid,
          this.#memFd,
          (frame, payload) => this.#control?.send(frame, payload),
          asId,
        )
      }
      this.#control?.send({ type: 'roundEnd', asId, round, final: true, batchesPerLane: sent.batchesPerLane })
    })
    // Read by a successor after kill -9 only, which needs no fsync: a host that crashes takes the original along.
    writeFileSync(this.#finalFile, JSON.stringify({ finalRound: round, report: this.#reportNow() }), {
      mode: 0o600,
    })
  }

  /** Between the stop and the moment that its threads are themselves again; blocks the workload. */
  #capture(stopped: StoppedProcess) {
    this.#untracked ||= hasUntrackedWriters(this.#pid)
    // On record before it exists: a successor removes it. No fsync, a host that crashes takes the workload along.
    const scratch = chooseScratch(this.#pid)
    writeFileSync(this.#scratchFile, String(scratch), { mode: 0o600 })
    const dump = dumpFrozen({
      stopped,
      nsPid: this.#nsPid,
      files: this.#files,
      rounds: this.#rounds,
      tracker: this.#tracker,
      hotPages: this.#spec.request.pushDelayMs ? 0 : undefined,
      trackingTrusted: !this.#untracked,
      mode: this.#settings.mode,
      scratch,
    })
    writeFileSync(this.#pagemapFile, dump.pagemap.bytes, { mode: 0o600 })
    return dump
  }

  get #scratchFile(): string {
    return `${this.#spec.stateDir}/scratch`
  }

  get #finalFile(): string {
    return `${this.#spec.stateDir}/final.json`
  }

  /** Which pages are lazy must be known after kill -9, too. */
  get #pagemapFile(): string {
    return `${this.#spec.stateDir}/pagemap.img`
  }

  #sendImage(image: NamedImage, round: number): void {
    const { bytes, name } = image
    let offset = 0
    do {
      const piece = bytes.subarray(offset, offset + imagePieceBytes)
      this.#control?.send({ type: 'image', asId, round, name, totalBytes: bytes.length, offset }, piece)
      offset += imagePieceBytes
    } while (offset < bytes.length)
  }

  /** The freezer takes over from the tracer: from here the workload stands still whatever happens to us. */
  async #keepFrozen(): Promise<void> {
    if (this.#freezer !== null) {
      if (this.#pidfd >= 0) this.#freezer.freeze()
      return
    }
    if (this.#records.freezer === undefined) throw new PageferryError('INTERNAL', 'no freezer was chosen')
    const freezer = new Freezer(this.#records.freezer)
    freezer.create()
    this.#freezer = freezer
    freezer.add(this.#pid)
    freezer.freeze()
    this.#stopped?.detach()
    this.#stopped = null
  }

  #serve(signal: AbortSignal): Promise<void> {
    return this.#phases.run('serve', async () => {
      if (this.#server === null) await this.#listen(this.#records.port ?? 0)
      const lazy = this.#final?.lazy ?? lazyFromImage(this.#pagemapFile)
      this.#serving = new Serving({
        pid: this.#pid,
        memFd: this.#memFd,
        asId,
        round: (this.#records.finalRound ?? (this.#rounds?.lastRound ?? 0) + 1) + 1,
        lazy,
        history: this.#rounds?.history,
        lanes: this.#bulk,
        pushDelayMs: this.#spec.request.pushDelayMs,
        log: this.#log,
      })
      await this.#serving.run(signal)
    })
  }

  #resume(): void {
    try {
      this.#tracker?.close()
      this.#tracker = null
      this.#stopped?.resume()
      this.#stopped = null
    } finally {
      this.#freezer?.dissolve()
    }
    if (this.#takenOver && this.#pidfd >= 0) {
      const scratch = existsSync(this.#scratchFile)
        ? Number(readFileSync(this.#scratchFile, 'utf8'))
        : undefined
      removeLeftovers(this.#pid, scratch)
    }
  }

  async #kill(): Promise<void> {
    await this.#phases.run('release', async () => {
      if (this.#pidfd >= 0) {
        try {
          fds.pidfdSendSignal(this.#pidfd, 9)
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
        }
      }
      this.#tracker?.close()
      this.#tracker = null
      this.#exitPoller?.close()
      this.#exitPoller = null
      // A v1 freezer holds even a killed process until it is thawed.
      this.#freezer?.thaw()
      this.#freezer?.remove()
    })
  }

  #reportNow(): SourceReport {
    const lanes = [this.#control, this.#faultLane]
    const bytes = this.#bulk.reduce((sum, lane) => sum + lane.bytesSent, 0)
    this.#report.bytesOnWire = lanes.reduce((sum, lane) => sum + (lane?.bytesSent ?? 0), bytes)
    this.#report.totalMs = performance.now() - this.#startedAt
    return this.#report
  }

  #show(progress: { phase: string; [key: string]: unknown }, now = false): void {
    this.#progress = progress
    if (!now && performance.now() - this.#lastStatusAt < 100) return
    this.#lastStatusAt = performance.now()
    this.#onState(this.#driver?.state)
  }

  #onState(state: SourceState | undefined): void {
    if (state === undefined) return
    const committed = ['committed', 'serving', 'released'].includes(state.name)
    this.#channel.send({
      type: 'status',
      state: state.name,
      committed,
      workload: { ...this.#report.workload, where: whereIs(state) },
      progress: this.#progress,
      report: this.#reportNow() as unknown as Record<string, unknown>,
    })
  }

  #finish(outcome: Outcome, error?: ErrorInfo): void {
    const workload = { ...this.#report.workload, where: whereIs(this.#driver.state) }
    this.#report.outcome = outcome
    const report = this.#reportNow() as unknown as Record<string, unknown>
    if (outcome === 'migrated') this.#channel.send({ type: 'finished', report, workload })
    else {
      const cause = error ?? { code: 'INTERNAL', message: `the migration ended: ${outcome}` }
      this.#channel.send({ type: 'failed', error: cause, workload, report })
    }
    // The peer may have missed the last word: it is answered until it hangs up.
    const leave = (): void => {
      this.#driver.stop()
      this.#server?.close()
      this.#journal.close()
      if (this.#memFd >= 0) closeSync(this.#memFd)
      this.#channel.exit(0)
    }
    // From DumpEnd on it may hold a complete, frozen copy, and it keeps that until it hears from us.
    const dumpEnded = this.#final !== null || this.#records.finalRound !== undefined
    if (this.#control === null && !dumpEnded) leave()
    else {
      setTimeout(leave, lingerMs)
      this.#whenHeard = () => {
        if (this.#control === null) leave()
      }
      void this.#reachable().catch((cause: Error) =>
        this.#log.warn(`the destination is not answered: ${cause.message}`),
      )
    }
  }

  #whenHeard: (() => void) | null = null

  /** After a takeover nobody listens yet on the port that the destination knows. */
  async #reachable(): Promise<void> {
    if (this.#server === null && this.#records.port !== undefined) await this.#listen(this.#records.port)
  }
}

/** How long a control lane must be down before it counts as hung up and not as broken: it is dialled again. */
const hangUpMs = 1_500

function whereIs(state: SourceState): 'running' | 'frozen' | 'gone' | 'unknown' {
  switch (state.name) {
    case 'preparing':
    case 'precopy':
    case 'resumed':
    case 'abandonedBack':
      return 'running'
    case 'released':
    case 'exited':
      return 'gone'
    default:
      return 'frozen'
  }
}
