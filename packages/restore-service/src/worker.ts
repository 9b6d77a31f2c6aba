import { createLogger, type ErrorInfo, type Logger, PageferryError, RecordFile } from '@pageferry/base'
import { ProcessImages } from '@pageferry/checkpoint'
import {
  type DestinationEffect,
  type DestinationEvent,
  type DestinationState,
  Driver,
  destinationStateFromJournal,
  type Outcome,
  startDestination,
  stepDestination,
  type ToDestination,
  takesRoundFrame,
  type WorkloadExit,
} from '@pageferry/migration'
import type { RestoreRequest } from '@pageferry/service'
import {
  Inbox,
  StatusReporter,
  type WorkerChannel,
  type WorkerSpec,
  workerPhases,
} from '@pageferry/service/worker'
import { type Frame, type FrameOf, frameToError, isFrameOn, WireError } from '@pageferry/wire'
import type { Destination, Member } from './destination.js'
import { openHolds } from './holds.js'
import { DestinationLanes } from './lanes/lanes.js'
import { runLazyPhase } from './lazy/run.js'
import { frameOf } from './messages.js'
import { prepare } from './prepare.js'
import { RestoredProcess } from './process.js'
import { DestinationRecords } from './records.js'
import { destinationStatus, emptyReport } from './report.js'
import { restore, thaw } from './restore.js'
import { ImageReceiver } from './rounds/images.js'
import { takeRoundFrame } from './rounds/route.js'
import { StoredImages } from './rounds/stored-images.js'
import { watchSilence } from './timeouts.js'
import { prove } from './verify/prove.js'
import { verifierFor } from './verify/verifier.js'

/**
 * The destination's side of one migration. It executes the effects of the state machine in
 * migration/destination-machine.ts; each effect is one phase, see #execute. The workload's process belongs to its
 * keeper. This worker may die at any moment; its successor takes over from the journal, the keeper and the records.
 */
export class DestinationWorker {
  readonly #destination: Destination
  readonly #log: Logger
  readonly #journal: RecordFile
  readonly #driver: Driver<DestinationState, DestinationEvent, DestinationEffect>
  #begin: FrameOf<'begin'> | null = null

  constructor(spec: WorkerSpec<RestoreRequest>, takeover: boolean, channel: WorkerChannel) {
    this.#log = createLogger('restore-worker').child({ migration: spec.id })
    this.#destination = this.#open(spec, takeover, channel)
    this.#journal = RecordFile.open(`${spec.stateDir}/journal`)
    if (takeover) this.#adopt()
    const { status, lanes } = this.#destination
    const records = this.#journal.records as { type: string }[]
    this.#driver = new Driver(takeover ? destinationStateFromJournal(records) : startDestination(), {
      step: stepDestination,
      execute: (effect, signal) => this.#execute(effect, signal),
      onState: () => status.send(),
    })
    channel.onCancel(() => this.#driver.post({ type: 'cancel' }))
    watchSilence(
      () => ({ state: this.#driver.state, isConnected: lanes.isConnected }),
      (what) => this.#driver.post({ type: 'timeout', what }),
    )
  }

  #open(spec: WorkerSpec<RestoreRequest>, takeover: boolean, channel: WorkerChannel): Destination {
    const { stateDir, request } = spec
    const { injectFault, imagesDir } = request
    const log = this.#log
    const records = new DestinationRecords(channel, spec)
    const report = records.known.report ?? emptyReport()
    const holds = openHolds(stateDir)
    const root = new RestoredProcess({ directory: stateDir, holds, onExit: (exit) => this.#onExit(exit) })
    const look = () => destinationStatus(this.#driver.state, root, records.known, report)
    const status = new StatusReporter(channel, { phase: 'connect' }, look)
    const images = new ProcessImages()
    const stored = imagesDir === undefined || takeover ? null : new StoredImages(imagesDir)
    return {
      ...{ spec, log, channel, status, holds, records, report, root, images, stored },
      phases: workerPhases({ role: 'destination', log, status, injectFault, takeover }),
      lanes: this.#openLanes(spec, records),
      inbox: new Inbox(),
      post: (event) => this.#driver.post(event),
      members: new Map(),
      imageReceiver: new ImageReceiver((name, bytes) => this.#imageCame(name, bytes)),
      readyParts: {},
      heir: null,
      lazy: null,
    }
  }

  #openLanes(
    { id, token, request }: WorkerSpec<RestoreRequest>,
    records: DestinationRecords,
  ): DestinationLanes {
    const source = { url: request.source, migrationId: id, token }
    return new DestinationLanes(source, records.known, this.#log, {
      onFrame: (frame, payload) => this.#onFrame(frame, payload),
      onLost: (lane, index) => this.#driver.post({ type: 'laneLost', lane, index }),
      onRedialled: (lane, index) => {
        if (lane === 'control') for (const { verifier } of this.#members) verifier?.reconnected()
        this.#driver.post({ type: 'reconnected', lane, index })
      },
      onPeerUnknown: () => this.#driver.post({ type: 'peerUnknown' }),
    })
  }

  /** Takes over from a worker that was killed. */
  #adopt(): void {
    const { records, root, members } = this.#destination
    const { asIds = [], verify } = records.known
    root.adopt(records.known)
    for (const asId of asIds) {
      const verifier = verifierFor(this.#destination, asId, verify)
      members.set(asId, { asId, process: root, rounds: null, verifier, family: null })
    }
  }

  get #members(): Member[] {
    return [...this.#destination.members.values()]
  }

  #onExit(exit: WorkloadExit): void {
    this.#driver.post({ type: 'workloadExited', exit })
    for (const { asId } of this.#members) this.#destination.lazy?.processGone(asId)
  }

  #imageCame(name: string, bytes: Uint8Array): void {
    const { images, stored } = this.#destination
    images.set(name, bytes)
    stored?.store(name, bytes)
    for (const { rounds } of this.#members) rounds?.imageCame(name)
  }

  async #execute(effect: DestinationEffect, signal: AbortSignal): Promise<void> {
    const destination = this.#destination
    const { phases, root, lanes } = destination
    switch (effect.type) {
      case 'connect':
        return phases.run('connect', () => this.#connect())
      case 'startPrepare':
        return phases.run('skeleton', () => this.#prepare(signal))
      case 'startRestore':
        return restore(destination, signal)
      case 'detachSkeleton':
        return root.release()
      case 'thawSkeleton':
        return phases.run('resume', () => thaw(destination))
      case 'startPostcopy':
        await phases.run('postcopy', () => runLazyPhase(destination, signal))
        return phases.run('verify', () => prove(destination, signal))
      case 'discardSkeleton':
        return root.discard()
      case 'reconnect':
        return lanes.redial(effect.lane, effect.index)
      case 'journal':
        return this.#journal.append(effect.record, effect.unsynced !== true)
      case 'send':
        return lanes.send(frameOf(effect.message, destination))
      case 'deliver':
        return destination.inbox.put(effect.message)
      case 'error':
        this.#log.warn({ code: effect.error.code }, effect.error.message)
        return
      case 'restart':
        this.#log.error({ code: effect.error.code }, `starting anew: ${effect.error.message}`)
        destination.channel.exit(1)
        return
      case 'finish':
        return this.#finish(effect.outcome, effect.error)
    }
  }

  async #connect(): Promise<void> {
    const { records, lanes } = this.#destination
    await records.keep(await lanes.connectControl())
    await lanes.connectPages()
    this.#driver.post({ type: 'connected' })
  }

  #prepare(signal: AbortSignal): Promise<void> {
    if (this.#begin === null) throw new PageferryError('INTERNAL', 'no Begin')
    return prepare(this.#destination, this.#begin, signal)
  }

  #onFrame(frame: Frame, payload: Uint8Array): void {
    if (!isFrameOn(frame, 'control', 'to-destination')) {
      throw new WireError('OUT_OF_ORDER', `${frame.type} does not belong here`)
    }
    switch (frame.type) {
      case 'image':
      case 'ghost':
      case 'ghostData':
      case 'ghostGone':
      case 'roundBegin':
      case 'roundEnd':
        if (takesRoundFrame(this.#driver.state, frame.type)) takeRoundFrame(this.#destination, frame, payload)
        return
      case 'pageHashes': {
        const verifier = this.#destination.members.get(frame.asId)?.verifier ?? null
        if (verifier === null) throw new PageferryError('PROTOCOL', 'hashes that were not asked for')
        verifier.answered(frame, payload)
        return
      }
      case 'failed':
        for (const { verifier } of this.#members) {
          verifier?.originalLost(PageferryError.fromInfo(frameToError(frame)))
        }
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

  #post(message: ToDestination): void {
    this.#driver.post({ type: 'message', message })
  }

  async #finish(outcome: Outcome, error?: ErrorInfo): Promise<void> {
    const { status, lanes, holds, root, channel } = this.#destination
    const cause = status.end(outcome, error)
    for (const { verifier } of this.#members) verifier?.removeLog()
    if (cause !== null && outcome === 'discarded' && !lanes.isConnected) await lanes.sayFailed(cause)
    // Not awaited: while the lane closes, the machine still answers messages that the source may have missed.
    void lanes.close().then(() => {
      this.#driver.stop()
      this.#journal.close()
      holds.close()
      root.close()
      channel.exit(0)
    })
  }
}
