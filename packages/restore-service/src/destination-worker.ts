import { closeSync, existsSync, rmSync } from 'node:fs'
import { performance } from 'node:perf_hooks'
import {
  createLogger,
  type ErrorInfo,
  type Logger,
  PageferryError,
  pageBytes,
  RecordFile,
  toErrorInfo,
} from '@pageferry/base'
import {
  areOwnOffsets,
  bootId,
  type Clocks,
  checkHosts,
  checkNeededFiles,
  endRehearsal,
  Freezer,
  type FreezerRecord,
  hostFacts,
  memoryRoom,
  offsetsFor,
  ownClocks,
  ProcessImages,
  Restorer,
  rehearse,
  requireCapabilities,
} from '@pageferry/checkpoint'
import {
  connectKeeper,
  fds,
  type KeeperClient,
  launchKeeper,
  Poller,
  readExitStatus,
} from '@pageferry/kernel'
import { checkInstalled, LazyMap } from '@pageferry/memory'
import {
  type DestinationEffect,
  type DestinationEvent,
  type DestinationReport,
  type DestinationState,
  Driver,
  destinationStateFromJournal,
  type Message,
  NO_FAULTS,
  type Outcome,
  Phases,
  parseFault,
  startDestination,
  stepDestination,
  type WorkloadExit,
} from '@pageferry/migration'
import type { RestoreRequest } from '@pageferry/service'
import { Inbox, type Lane, type WorkerChannel, type WorkerSpec } from '@pageferry/service/worker'
import { errorToFrame, type Frame, type FrameOf, frameToError, toJsonText } from '@pageferry/wire'
import { dial } from './dial.js'
import { ImageReceiver } from './image-receiver.js'
import { adoptSpaces, holdMain, type Space } from './lazy-spaces.js'
import { Postcopy } from './postcopy.js'
import { type FinalSets, RoundReceiver } from './round-receiver.js'
import { StoredImages } from './stored-images.js'
import { Verifier } from './verifier.js'

const redialMs = 200
const maxRedialMs = 5_000
/** How often an unanswered Drained or Abandoned is said again. */
const repeatMs = 5_000
/**
 * How long a complete copy waits for a source that cannot be reached: longer than the source, when it has not
 * committed, waits to be asked. Giving up is safe then and later: a source that has committed hears it and resumes.
 */
const readyPatienceMs = 60_000
const lingerMs = 10_000
const clockRequests = 5
/** Attempts to reach a source that has lost us: its next worker is there within a second or two. */
const farewells = 5
const farewellPauseMs = 800

/** What must be known after kill -9 of this worker, in spec.records. */
interface DestinationRecords {
  nrBulkLanes?: number
  freezer?: FreezerRecord
  pid?: number
  nsPid?: number
  comm?: string
  threads?: number
  finalRound?: number
  report?: DestinationReport
}

/**
 * The destination's side of one migration: executes what the state machine in
 * migration/destination-machine.ts says. The workload's process belongs to its keeper; this worker may die at
 * any moment and its successor takes over from the journal, the keeper and the records.
 */
export class DestinationWorker {
  readonly #spec: WorkerSpec<RestoreRequest>
  readonly #channel: WorkerChannel
  readonly #log: Logger
  readonly #journal: RecordFile
  readonly #driver: Driver<DestinationState, DestinationEvent, DestinationEffect>
  readonly #phases: Phases
  readonly #inbox = new Inbox()
  readonly #images = new ProcessImages()
  readonly #imageReceiver: ImageReceiver
  readonly #records: DestinationRecords
  readonly #report: DestinationReport
  readonly #takenOver: boolean
  #deafSince: number | null = null
  #begin: FrameOf<'begin'> | null = null
  #control: Lane | null = null
  #faultLane: Lane | null = null
  #keeper: KeeperClient | null = null
  #restorer: Restorer | null = null
  #receiver: RoundReceiver | null = null
  #verifier: Verifier | null = null
  readonly #stored: StoredImages | null
  #final: FinalSets | null = null
  #freezer: Freezer | null = null
  #spaces: Space[] | null = null
  #postcopy: Postcopy | null = null
  #exitPoller: Poller | null = null
  #pidfd = -1
  #pid = 0
  #readyParts: Record<string, number> = {}
  #progress: { phase: string; [key: string]: unknown } = { phase: 'connect' }
  #lastStatusAt = 0
  #redialling = new Set<string>()
  #over = false
  #exit: WorkloadExit | undefined

  constructor(spec: WorkerSpec<RestoreRequest>, takeover: boolean, channel: WorkerChannel) {
    this.#spec = spec
    this.#channel = channel
    this.#log = createLogger('restore-worker').child({ migration: spec.id })
    this.#records = Object.assign({}, ...spec.records)
    this.#report = this.#records.report ?? {
      faults: { ...NO_FAULTS },
      pushedPages: 0,
      drainMs: 0,
      verify: null,
      blackout: { restoreMs: 0, resumeMs: 0 },
    }
    const fault =
      spec.request.injectFault === undefined ? undefined : parseFault(spec.request.injectFault, 'destination')
    this.#phases = new Phases(
      {
        now: () => performance.now(),
        sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
        crash: () => process.kill(process.pid, 'SIGKILL'),
        onStart: (phase) => this.#show({ phase }),
        onEnd: ({ phase, durationMs, error }) =>
          this.#log.info({ phase, durationMs, error: error?.message }, 'phase ended'),
      },
      fault === undefined || takeover ? [] : [fault],
    )
    const { imagesDir } = spec.request
    this.#stored = imagesDir === undefined || takeover ? null : new StoredImages(imagesDir)
    this.#imageReceiver = new ImageReceiver((name, bytes) => this.#onImage(name, bytes))
    this.#journal = RecordFile.open(`${spec.stateDir}/journal`)
    const records = this.#journal.records as { type: string }[]
    this.#takenOver = takeover
    if (takeover) this.#adopt()
    this.#driver = new Driver(takeover ? destinationStateFromJournal(records) : startDestination(), {
      step: stepDestination,
      execute: (effect, signal) => this.#execute(effect, signal),
      onState: (state) => this.#onState(state),
    })
    channel.onCancel(() => this.#driver.post({ type: 'cancel' }))
    setInterval(() => {
      const { name, settled } = this.#driver.state
      if (name === 'drained' || (name === 'abandoned' && !settled)) {
        this.#driver.post({ type: 'timeout', what: 'no answer from the source' })
      }
      const now = performance.now()
      this.#deafSince = name === 'ready' && this.#control === null ? (this.#deafSince ?? now) : null
      if (this.#deafSince !== null && now - this.#deafSince > readyPatienceMs) {
        this.#driver.post({ type: 'timeout', what: 'the source is out of reach and has not answered Ready' })
      }
    }, repeatMs).unref()
  }

  /** The service finds the exit status there, too. */
  get #keeperDir(): string {
    return this.#spec.stateDir
  }

  get #rehearsalDir(): string {
    return `${this.#spec.stateDir}/rehearsal`
  }

  get #hashesFile(): string {
    return `${this.#spec.stateDir}/hashes`
  }

  #adopt(): void {
    const { freezer, pid } = this.#records
    if (freezer !== undefined) this.#freezer = new Freezer(freezer)
    this.#pid = pid ?? 0
    endRehearsal(this.#rehearsalDir)
    try {
      this.#keeper = connectKeeper(this.#keeperDir)
      const child = this.#keeper.child()
      this.#pid = child.pid
      this.#watchProcess(child.pidfd)
    } catch {
      // No keeper, or it has no child any more: it wrote down how that ended.
      const exit = readExitStatus(this.#keeperDir) ?? ({ kind: 'unknown' } as const)
      this.#exit = exit
      queueMicrotask(() => this.#driver.post({ type: 'workloadExited', exit }))
    }
  }

  #watchProcess(pidfd: number): void {
    this.#pidfd = pidfd
    this.#exitPoller = new Poller(pidfd, () => {
      this.#exitPoller?.close()
      this.#exitPoller = null
      void this.#onExit()
    })
  }

  async #onExit(): Promise<void> {
    // The keeper reaps and writes; a moment later it is on disk.
    for (let i = 0; i < 100 && readExitStatus(this.#keeperDir) === undefined; i++) {
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
    this.#exit = readExitStatus(this.#keeperDir) ?? { kind: 'unknown' }
    this.#driver.post({ type: 'workloadExited', exit: this.#exit })
    this.#postcopy?.processGone()
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
        return this.#detach()
      case 'thawSkeleton':
        return this.#thaw()
      case 'startPostcopy':
        return this.#runPostcopy(signal)
      case 'discardSkeleton':
        return this.#discard()
      case 'reconnect':
        return this.#redial(effect.lane, effect.index)
      case 'journal':
        return this.#journal.append(effect.record)
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

  async #connect(): Promise<void> {
    const { nrBulkLanes } = await this.#dial('control', 0, false)
    this.#records.nrBulkLanes = nrBulkLanes
    await this.#channel.record({ nrBulkLanes })
    await this.#dial('fault', 0, false)
    for (let i = 0; i < nrBulkLanes; i++) await this.#dial('bulk', i, false)
    this.#driver.post({ type: 'connected' })
  }

  async #dial(kind: 'control' | 'fault' | 'bulk', index: number, resume: boolean) {
    const { id, token, request } = this.#spec
    const dialled = await dial({ url: request.source, migrationId: id, token, kind, index, resume })
    const { lane } = dialled
    if (kind === 'control') this.#control = lane
    if (kind === 'fault') this.#faultLane = lane
    lane.open({
      onFrame: (frame, payload) => this.#onFrame(lane, frame, payload),
      onLost: (error) => {
        this.#log.info(error.message)
        if (kind === 'control' && this.#control === lane) this.#control = null
        this.#driver.post({ type: 'laneLost', lane: kind, index })
      },
    })
    return dialled
  }

  /** In the background, until it is up or the migration is over. */
  #redial(kind: 'control' | 'fault' | 'bulk', index?: number): void {
    const indices =
      kind === 'bulk' && index === undefined
        ? [...Array(this.#records.nrBulkLanes ?? 1).keys()]
        : [index ?? 0]
    for (const each of indices) void this.#redialOne(kind, each)
  }

  async #redialOne(kind: 'control' | 'fault' | 'bulk', index: number): Promise<void> {
    const key = `${kind}:${index}`
    if (this.#redialling.has(key)) return
    this.#redialling.add(key)
    let pauseMs = redialMs
    while (!this.#over) {
      await new Promise((resolve) => setTimeout(resolve, pauseMs))
      pauseMs = Math.min(2 * pauseMs, maxRedialMs)
      if (this.#over) break
      try {
        const { lane } = await this.#dial(kind, index, true)
        if (kind === 'fault') this.#postcopy?.attachFaultLane(lane)
        this.#driver.post({ type: 'reconnected', lane: kind, index })
        break
      } catch (error) {
        this.#log.debug({ error: (error as Error).message }, `${kind} lane is still down`)
        if (error instanceof PageferryError && error.code === 'NOT_FOUND')
          this.#driver.post({ type: 'peerUnknown' })
      }
    }
    this.#redialling.delete(key)
  }

  #onFrame(lane: Lane, frame: Frame, payload: Uint8Array): void {
    switch (frame.type) {
      case 'pageBatch':
        if (this.#postcopy !== null) this.#postcopy.onBatch(lane, frame, payload)
        else if (this.#receiver === null)
          throw new PageferryError('PROTOCOL', 'pages before there is a skeleton')
        else if (this.#finalRound !== undefined && frame.round > this.#finalRound)
          this.#early.push({ lane, frame, payload })
        else this.#receiver.batch(lane, frame, payload)
        return
      case 'pageReply':
        this.#postcopy?.onReply(frame, payload)
        return
      case 'image':
        if (this.#driver.state.name !== 'receiving')
          throw new PageferryError('PROTOCOL', 'an image at the wrong time')
        this.#imageReceiver.add(frame, payload)
        return
      case 'pageHashes':
        this.#verifier?.add(frame, payload)
        return
      case 'roundBegin':
        // The final map decides which round the pages that are pushed later belong to.
        if (frame.final) this.#finalRound = frame.round
        this.#round(() => this.#receiver?.begin(frame))
        return
      case 'roundEnd':
        this.#round(() =>
          this.#receiver?.end(frame, (pages, durationMs) => {
            const { asId, round } = frame
            this.#control?.send({ type: 'roundApplied', asId, round, pages, durationMs })
          }),
        )
        return
      case 'begin':
        this.#begin = frame
        this.#post({ type: 'begin', frame })
        return
      case 'cancel':
      case 'failed':
        this.#post({ type: frame.type, error: frameToError(frame) })
        return
      default:
        this.#post({ type: frame.type as Message['type'], frame })
    }
  }

  #finalRound: number | undefined
  /** Pages that were pushed before the workload runs; bounded by the lanes' windows. */
  readonly #early: { lane: Lane; frame: FrameOf<'pageBatch'>; payload: Uint8Array }[] = []

  #post(message: Message): void {
    this.#driver.post({ type: 'message', message })
  }

  /** Failures while a round is applied end the migration with their own reason, not with a closed lane. */
  #round(apply: () => void): void {
    if (this.#receiver === null) throw new PageferryError('PROTOCOL', 'a round before there is a skeleton')
    try {
      apply()
    } catch (error) {
      const info =
        error instanceof PageferryError
          ? error
          : new PageferryError('KERNEL', (error as Error).message, { cause: error })
      this.#driver.post({ type: 'stepFailed', step: 'prepare', error: info.toInfo() })
    }
  }

  #deliver(message: Message): void {
    if (message.frame !== undefined) this.#inbox.put(message.frame as Frame)
  }

  #onImage(name: string, bytes: Uint8Array): void {
    this.#images.set(name, bytes)
    this.#stored?.store(name, bytes)
  }

  async #prepare(signal: AbortSignal): Promise<void> {
    const begin = this.#begin
    if (begin === null) throw new PageferryError('INTERNAL', 'no Begin')
    requireCapabilities('destination')
    checkHosts(begin.source, hostFacts())
    checkNeededFiles(begin.files)
    const room = memoryRoom()
    if (begin.residentPages * pageBytes > room.bytes) {
      throw new PageferryError(
        'REFUSED',
        `the workload has ${begin.residentPages * pageBytes} bytes resident, the destination has room for ${room.bytes} (${room.limitedBy})`,
      )
    }
    // Also proves that this host can do it, before the workload is touched.
    await rehearse(this.#rehearsalDir, 'restore')
    signal.throwIfAborted()
    const offsets = await this.#matchClocks(begin.source.bootId === bootId(), signal)
    this.#freezer = Freezer.atTop(this.#spec.id)
    await this.#channel.record({
      freezer: this.#freezer.record,
      nsPid: begin.pid,
      comm: begin.comm,
      threads: begin.tids.length,
    })
    Object.assign(this.#records, { nsPid: begin.pid, comm: begin.comm, threads: begin.tids.length })
    this.#freezer.create()
    this.#keeper = await launchKeeper({
      dir: this.#keeperDir,
      newPidNamespace: this.#spec.request.newPidNamespace,
      ...(areOwnOffsets(offsets)
        ? {}
        : { monotonicOffsetNs: offsets.monotonicNs, boottimeOffsetNs: offsets.boottimeNs }),
      removeCgroups: [this.#freezer.record.path],
    })
    this.#restorer = Restorer.create(this.#keeper, begin.pid, [])
    this.#pid = this.#restorer.pid
    this.#records.pid = this.#pid
    this.#freezer.add(this.#pid)
    this.#watchProcess(fds.dup(this.#restorer.skeleton.pidfd))
    if (begin.verify || this.#spec.request.verify === true) this.#verifier = new Verifier()
    const receiver = new RoundReceiver(this.#restorer, this.#images, begin.asId)
    this.#receiver = receiver
    const all = this.#phases.run('receive', () => untilAborted(receiver.finalInstalled, signal))
    all.catch((cause: unknown) => {
      if (!signal.aborted)
        this.#driver.post({ type: 'stepFailed', step: 'prepare', error: toErrorInfo(cause) })
    })
  }

  /** Of several round trips the fastest is the most exact. */
  async #matchClocks(sameKernel: boolean, signal: AbortSignal): Promise<Clocks> {
    let best: Clocks | null = null
    for (let i = 0; i < clockRequests; i++) {
      const before = ownClocks()
      this.#control?.send({ type: 'clockRequest' })
      const offsets = offsetsFor(await this.#inbox.next('clockReply', signal), before, sameKernel)
      if (best === null || offsets.monotonicNs < best.monotonicNs) best = offsets
    }
    return best as Clocks
  }

  async #restore(signal: AbortSignal): Promise<void> {
    const { restorer, receiver } = this.#built()
    const sets = await untilAborted(receiver.finalInstalled, signal)
    this.#final = sets
    const began = performance.now()
    await this.#phases.run('reconcile', () => this.#verify(restorer, sets))
    const { pid, memFd } = restorer.skeleton
    this.#stored?.storePages({ pid, memFd, nsPid: restorer.nsPid }, sets)
    const verified = performance.now()
    await this.#phases.run('restore', () => {
      restorer.restoreState(this.#images)
      this.#freezer?.freeze()
    })
    if (this.#keeper === null) throw new PageferryError('INTERNAL', 'no keeper')
    this.#spaces = [holdMain(this.#keeper, restorer.uffd, new LazyMap(sets.lazy.clone()))]
    this.#verifier?.save(this.#hashesFile)
    await this.#channel.record({ pid: this.#pid, finalRound: receiver.round, report: this.#report })
    const restoreMs = performance.now() - began
    this.#report.blackout.restoreMs = restoreMs
    this.#readyParts = { verifyMs: verified - began, stateMs: performance.now() - verified }
  }

  #built(): { restorer: Restorer; receiver: RoundReceiver } {
    if (this.#restorer === null || this.#receiver === null)
      throw new PageferryError('INTERNAL', 'no skeleton')
    return { restorer: this.#restorer, receiver: this.#receiver }
  }

  #verify(restorer: Restorer, sets: FinalSets): void {
    const verifier = this.#verifier
    if (verifier === null) return
    if (!verifier.complete) throw new PageferryError('PROTOCOL', 'the hashes of the original did not arrive')
    const { missing, unexpected } = checkInstalled(restorer.presentPages(), sets, restorer.map.map)
    verifier.noteUnexpected(missing)
    verifier.noteUnexpected(unexpected)
    verifier.checkInstalled(restorer.pid, sets.parent.clone().union(sets.present).subtract(missing))
    this.#report.verify = { pages: verifier.pages, mismatches: verifier.mismatches }
    if (verifier.mismatches > 0) {
      throw new PageferryError(
        'VERIFY_FAILED',
        `${verifier.mismatches} pages of the restored process differ from the original: ${verifier.differing
          .map((page) => `0x${page.toString(16)}`)
          .join(', ')}`,
      )
    }
  }

  #detach(): void {
    if (this.#restorer === null || this.#freezer === null) throw new PageferryError('INTERNAL', 'no skeleton')
    this.#restorer.release(this.#freezer)
  }

  async #thaw(): Promise<void> {
    await this.#phases.run('resume', () => {
      const began = performance.now()
      // The faults of the first instructions must find somebody: the poller starts with the thaw.
      this.#freezer?.thaw()
      this.#report.blackout.resumeMs = performance.now() - began
    })
  }

  #runPostcopy(signal: AbortSignal): Promise<void> {
    return this.#phases.run('postcopy', async () => {
      const keeper = this.#keeper
      // It ends with the last process of the tree: then nobody needs a page any more.
      if (keeper === null) return
      const takenOver = this.#spaces === null
      const spaces = this.#spaces ?? adoptSpaces(keeper, this.#log)
      if (takenOver && existsSync(this.#hashesFile)) {
        this.#verifier = Verifier.load(this.#hashesFile, this.#report.verify)
      }
      const totalPages = spaces.reduce((sum, { lazy }) => sum + lazy.pendingCount, 0)
      const postcopy = new Postcopy({
        spaces,
        takenOver,
        asId: this.#begin?.asId ?? 1,
        round: (this.#receiver?.round ?? this.#records.finalRound ?? 1) + 1,
        verifier: this.#verifier,
        log: this.#log,
        keeper,
        onProgress: (pendingPages, faults, installedPages) => {
          this.#control?.send({ type: 'progress', pendingPages, faults, installedPages })
          this.#show({ phase: 'postcopy', pendingPages, totalPages })
        },
      })
      this.#postcopy = postcopy
      if (this.#faultLane !== null) postcopy.attachFaultLane(this.#faultLane)
      const running = postcopy.run(signal)
      for (const { lane, frame, payload } of this.#early.splice(0)) postcopy.onBatch(lane, frame, payload)
      if (this.#exit !== undefined) postcopy.processGone()
      await running
      this.#report.faults = postcopy.faults
      this.#report.pushedPages = postcopy.pushedPages
      this.#report.drainMs = postcopy.drainMs
      if (this.#verifier !== null) {
        this.#report.verify = { pages: this.#verifier.pages, mismatches: this.#verifier.mismatches }
      }
      postcopy.release()
      rmSync(this.#hashesFile, { force: true })
      this.#restorer?.skeleton.close()
    })
  }

  #discard(): void {
    this.#exitPoller?.close()
    this.#exitPoller = null
    try {
      if (this.#keeper?.status().state === 'none') this.#keeper.quit()
      else this.#keeper?.kill()
    } catch (error) {
      this.#log.debug({ error: (error as Error).message }, 'the keeper is gone already')
    }
    this.#freezer?.thaw()
    this.#keeper?.close()
    this.#keeper = null
    this.#freezer?.remove()
  }

  #send(message: Message): void {
    switch (message.type) {
      case 'prepared':
        this.#control?.send({ type: 'prepared', destination: hostFacts(), pid: this.#pid })
        return
      case 'ready':
        this.#control?.send({
          type: 'ready',
          restoreMs: this.#report.blackout.restoreMs,
          partsJson: toJsonText(this.#readyParts),
        })
        return
      case 'running':
        this.#control?.send({ type: 'running', resumeMs: this.#report.blackout.resumeMs, pid: this.#pid })
        return
      case 'drained':
        this.#control?.send({
          type: 'drained',
          statsJson: toJsonText(this.#report as unknown as Record<string, unknown>),
        })
        return
      case 'abandoned':
        this.#control?.send({ type: 'abandoned', reason: message.reason ?? '' })
        return
      case 'failed':
      case 'cancel':
        this.#control?.send(errorToFrame(message.type, message.error as ErrorInfo))
        return
      default:
        throw new PageferryError('INTERNAL', `the destination does not send ${message.type}`)
    }
  }

  #show(progress: { phase: string; [key: string]: unknown }): void {
    this.#progress = progress
    if (performance.now() - this.#lastStatusAt < 100) return
    this.#lastStatusAt = performance.now()
    this.#onState(this.#driver?.state)
  }

  #workload(state: DestinationState) {
    const { comm, threads } = this.#records
    return {
      pid: this.#pid,
      comm: comm ?? this.#begin?.comm ?? '',
      threads: threads ?? this.#begin?.tids.length ?? 0,
      where: whereIs(state),
      ...(this.#exit === undefined ? {} : { exit: this.#exit }),
    }
  }

  #onState(state: DestinationState | undefined): void {
    if (state === undefined) return
    this.#channel.send({
      type: 'status',
      state: state.name,
      committed: ['committed', 'running', 'drained', 'done', 'lost'].includes(state.name),
      ...(this.#pid === 0 ? {} : { workload: this.#workload(state) }),
      progress: this.#progress,
      report: this.#report as unknown as Record<string, unknown>,
    })
  }

  /**
   * Without a lane at the end: a source that was never dialled waits for us, one whose worker was killed in the
   * freeze listens again a moment later, in case that we hold a complete copy. Not more than a courtesy.
   */
  async #sayFailed(error: ErrorInfo): Promise<void> {
    const { id, token, request } = this.#spec
    const resume = !this.#takenOver
    const target = { url: request.source, migrationId: id, token, kind: 'control', index: 0, resume } as const
    for (let attempt = 0; attempt < farewells; attempt++) {
      try {
        const { lane } = await dial(target)
        lane.open({ onFrame: () => {}, onLost: () => {} })
        lane.send(errorToFrame('failed', error))
        lane.close()
        await lane.closed()
        return
      } catch {
        await new Promise((resolve) => setTimeout(resolve, farewellPauseMs))
      }
    }
  }

  async #finish(outcome: Outcome, error?: ErrorInfo): Promise<void> {
    const workload = this.#workload(this.#driver.state)
    const report = this.#report as unknown as Record<string, unknown>
    if (outcome === 'migrated') this.#channel.send({ type: 'finished', report, workload })
    else {
      const cause = error ?? { code: 'INTERNAL', message: `the migration ended: ${outcome}` }
      this.#channel.send({ type: 'failed', error: cause, workload, report })
      if (outcome === 'discarded' && this.#control === null) await this.#sayFailed(cause)
    }
    this.#over = true
    this.#control?.close()
    const leave = (): void => {
      this.#driver.stop()
      this.#journal.close()
      this.#keeper?.close()
      if (this.#pidfd >= 0) closeSync(this.#pidfd)
      this.#channel.exit(0)
    }
    if (this.#control === null) leave()
    else {
      setTimeout(leave, lingerMs)
      void this.#control.closed().then(leave)
    }
  }
}

function whereIs(state: DestinationState): 'running' | 'frozen' | 'gone' | 'unknown' {
  if (state.exit !== undefined) return 'gone'
  switch (state.name) {
    case 'running':
    case 'drained':
    case 'done':
      return 'running'
    case 'ready':
    case 'restoring':
      return 'frozen'
    case 'committed':
    case 'lost':
      return 'unknown'
    default:
      return 'gone'
  }
}

/** A step must end when it is told to, also while it waits for what will never come. */
function untilAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return Promise.race([
    promise,
    new Promise<never>((_, reject) => {
      if (signal.aborted) reject(signal.reason)
      signal.addEventListener('abort', () => reject(signal.reason), { once: true })
    }),
  ])
}
