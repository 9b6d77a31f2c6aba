import {
  createLogger,
  type ErrorInfo,
  isKernelError,
  type Logger,
  MiB,
  PageferryError,
  RecordFile,
} from '@pageferry/base'
import { exits, readClocks } from '@pageferry/checkpoint'
import {
  Driver,
  exitText,
  type FromSource,
  isFrozenForGood,
  type Outcome,
  type SourceEffect,
  type SourceEvent,
  type SourceRecord,
  type SourceState,
  sourceStateFromJournal,
  sourceWorkloadAt,
  startSource,
  stepSource,
  type WorkloadExit,
} from '@pageferry/migration'
import type { DumpRequest } from '@pageferry/service'
import {
  Inbox,
  StatusReporter,
  type WorkerChannel,
  type WorkerSpec,
  type WorkerStatus,
  workerPhases,
} from '@pageferry/service/worker'
import { type Frame, WireError } from '@pageferry/wire'
import { openHolds } from './holds.js'
import { SourceLanes } from './lanes/lanes.js'
import { listenAgain, serve } from './lazy/serve.js'
import { frameOf, messageOf } from './messages.js'
import { prepare } from './prepare.js'
import { SourceRecords } from './records.js'
import { ReportInProgress } from './report.js'
import { dump, freeze, keepFrozen } from './rounds/freeze-and-dump.js'
import { Pacing } from './rounds/pacing.js'
import { precopy } from './rounds/precopy.js'
import { Deferred, type Source } from './source.js'
import { answerHashes, keepOriginal } from './verify/original.js'
import { Workload } from './workload.js'

const connectTimeoutMs = 60_000

/**
 * The source's side of one migration. It executes the effects of the state machine in migration/source-machine.ts; each
 * effect is one phase, see #carryOut. The machine's state says where the workload is.
 */
export class SourceWorker {
  readonly #source: Source
  readonly #log: Logger
  readonly #journal: RecordFile
  readonly #driver: Driver<SourceState, SourceEvent, SourceEffect>

  constructor(spec: WorkerSpec<DumpRequest>, takeover: boolean, channel: WorkerChannel) {
    this.#log = createLogger('dump-worker').child({ migration: spec.id })
    this.#source = this.#open(spec, takeover, channel)
    this.#journal = RecordFile.open(`${spec.stateDir}/journal`)
    const { workload, records, settings, status } = this.#source
    // The machine learns it from the first event. There is no driver to post it to yet.
    if (takeover && !workload.adopt(records.workload)) queueMicrotask(() => this.#exited({ kind: 'unknown' }))
    if (records.workload.comm === undefined) this.#introduce()
    const first = takeover
      ? sourceStateFromJournal(this.#journal.records as SourceRecord[], settings.mode)
      : startSource(settings.mode)
    this.#driver = new Driver(first, {
      step: stepSource,
      execute: (effect, signal) => this.#execute(effect, signal),
      onState: () => status.send(),
    })
    channel.onCancel(() => this.#driver.post({ type: 'cancel' }))
  }

  #open(spec: WorkerSpec<DumpRequest>, takeover: boolean, channel: WorkerChannel): Source {
    const { pid, injectFault } = spec.request
    const log = this.#log
    // The service has filled in the defaults.
    const settings = spec.request
    const records = new SourceRecords(spec, channel)
    const status = new StatusReporter(channel, { phase: 'prepare' }, () => this.#look())
    const holds = openHolds(spec.stateDir)
    return {
      ...{ spec, settings, log, channel, status, records, holds },
      phases: workerPhases({ role: 'source', log, status, injectFault, takeover }),
      workload: new Workload(pid, holds, {
        ghostBytes: settings.ghostLimitMiB * MiB,
        onExit: (exit) => this.#exited(exit),
      }),
      report: new ReportInProgress(spec, settings.mode, records),
      lanes: this.#openLanes(spec, settings),
      inbox: new Inbox(),
      pacing: new Pacing(settings.maxBandwidthMbit),
      running: new Deferred(),
      push: null,
      hashes: null,
    }
  }

  #openLanes(spec: WorkerSpec, settings: Source['settings']): SourceLanes {
    return new SourceLanes({
      spec,
      settings,
      log: this.#log,
      onFrame: (frame) => this.#onFrame(frame),
      onBatchesLost: (batches) => this.#source.push?.requeue(batches),
      onEvent: (event) => this.#driver.post(event),
    })
  }

  /** Comes first: from here on each message about the process has its name. */
  #introduce(): void {
    const { workload, records, report } = this.#source
    try {
      const { comm, threads } = workload.root.identity
      report.noteWorkload({ comm, threads })
      void records.save(workload.record)
    } catch {
      // The preparation will report that there is no such process.
    }
  }

  #exited(exit: WorkloadExit): void {
    this.#driver.post({ type: 'workloadExited', exit })
  }

  async #execute(effect: SourceEffect, signal: AbortSignal): Promise<void> {
    try {
      await this.#carryOut(effect, signal)
    } catch (error) {
      const { root, space } = this.#source.workload
      if (!isKernelError(error)) throw error
      if (!(await exits(root.pid, error))) {
        space.requireSameProgram()
        throw error
      }
      const how = exitText(root.exit)
      throw new PageferryError('WORKLOAD_EXITED', `process ${root.pid} ${how} during the migration`, {
        cause: error,
      })
    }
  }

  async #carryOut(effect: SourceEffect, signal: AbortSignal): Promise<void> {
    const source = this.#source
    const { phases, workload } = source
    switch (effect.type) {
      case 'startPrepare':
        return phases.run('prepare', () => this.#prepare())
      case 'startPrecopy':
        return precopy(source, signal)
      case 'freezeWorkload':
        return phases.run('freeze', () => freeze(source, signal))
      case 'startDump':
        return dump(source, signal)
      case 'detachAndKeepFrozen':
        return keepFrozen(source)
      case 'startServing':
        return phases.run('serve', () => serve(source, signal))
      case 'resumeWorkload':
        return workload.resume()
      case 'killOriginal':
        return phases.run('release', () => workload.kill())
      case 'journal':
        return phases.run('commit', () => this.#journal.append(effect.record))
      case 'send':
        return this.#send(effect.message)
      case 'deliver':
        return this.#deliver(effect.message)
      case 'error':
        this.#log.warn({ code: effect.error.code }, effect.error.message)
        return
      case 'restart':
        this.#log.error({ code: effect.error.code }, `starting anew: ${effect.error.message}`)
        source.channel.exit(1)
        return
      case 'finish':
        return this.#finish(effect.outcome, effect.error)
    }
  }

  async #prepare(): Promise<void> {
    const { report, workload } = this.#source
    await prepare(this.#source, () => report.workloadIn(this.#driver.state, workload))
    const timer = setTimeout(() => {
      if (!this.#driver.state.connected)
        this.#driver.post({ type: 'timeout', what: 'the destination did not connect' })
    }, connectTimeoutMs)
    timer.unref()
  }

  #onFrame(frame: Frame): void {
    const { report, running, status } = this.#source
    if (frame.type === 'hashRequest') {
      // A question changes nothing and belongs to no step, so the machine does not see it.
      if (!isFrozenForGood(this.#driver.state)) throw new WireError('OUT_OF_ORDER', 'HashRequest')
      answerHashes(this.#source, frame)
      return
    }
    if (frame.type === 'running') {
      report.noteRunning()
      running.resolve()
      status.speak()
    }
    const message = messageOf(frame)
    if (message.type !== 'drained' || message.error === undefined) {
      this.#driver.post({ type: 'message', message })
      return
    }
    const error = keepOriginal(this.#source, message.error)
    this.#driver.post({ type: 'message', message: { type: 'drained', error } })
  }

  #send(message: FromSource): void {
    const { lanes, workload, settings } = this.#source
    // Without a connection it would be dropped; and some frames can be built only while the process lives.
    if (lanes.isConnected) lanes.send(frameOf(message, workload, settings))
  }

  #deliver(message: Extract<SourceEffect, { type: 'deliver' }>['message']): void {
    const { lanes, workload, status, inbox } = this.#source
    switch (message.type) {
      case 'clockRequest':
        lanes.send({ type: 'clockReply', ...readClocks(workload.root.pid) })
        break
      case 'progress':
        status.show({ phase: 'serve', pendingPages: message.pendingPages })
        break
      case 'roundApplied':
        inbox.put(message)
    }
  }

  #look(): WorkerStatus {
    const { state } = this.#driver
    const { report, workload, lanes } = this.#source
    return {
      state: state.name,
      committed: ['handed-over', 'running-on-destination'].includes(sourceWorkloadAt(state)),
      workload: report.workloadIn(state, workload),
      report: report.now(lanes),
    }
  }

  #finish(outcome: Outcome, error?: ErrorInfo): void {
    this.#source.report.noteOutcome(outcome)
    this.#source.status.end(outcome, error)
    // Not awaited: meanwhile the machine answers a peer that missed the last message.
    void this.#leave()
  }

  async #leave(): Promise<void> {
    const { lanes, records, workload, holds, channel } = this.#source
    // From DumpEnd on the destination may hold a complete, frozen copy. It keeps the copy until it hears from us.
    if (lanes.isConnected || records.dumpEnd !== null) {
      const left = lanes.hungUp()
      await listenAgain(this.#source).catch((cause: Error) =>
        this.#log.warn(`the destination gets no answer: ${cause.message}`),
      )
      await left
    }
    this.#driver.stop()
    if (this.#driver.state.name === 'exited') this.#letGo()
    lanes.close()
    this.#journal.close()
    workload.close()
    holds.close()
    channel.exit(0)
  }

  /**
   * Releases a workload that has ended by itself: no step uses it any more. An original that is kept must stay frozen.
   */
  #letGo(): void {
    try {
      this.#source.holds.releaseAll()
    } catch (error) {
      this.#log.error({ error: (error as Error).message }, 'parts of the migration remain on this host')
    }
  }
}
