import { PageferryError } from '@pageferry/base'
import type { Lane } from '@pageferry/service/worker'
import type { FrameOf } from '@pageferry/wire'
import type { Postcopy } from './postcopy.js'
import type { RoundReceiver } from './round-receiver.js'

export interface PageInletEvents {
  /** A whole round is installed. */
  onRoundApplied(frame: FrameOf<'roundApplied'>): void
  onRoundFailed(error: PageferryError): void
}

/**
 * Where the pages go that the lanes bring: round by round into the stopped skeleton (RoundReceiver), and from the
 * thaw on to whoever waits for them (Postcopy). Pushed pages may overtake Commit, which comes on another lane.
 */
export class PageInlet {
  readonly #events: PageInletEvents
  #receiver: RoundReceiver | null = null
  #postcopy: Postcopy | null = null
  /** What comes after it was pushed. Known from the final map on. */
  #finalRound = Number.POSITIVE_INFINITY
  /** Pages that were pushed before the workload runs; bounded by the lanes' windows. */
  readonly #early: { lane: Lane; frame: FrameOf<'pageBatch'>; payload: Uint8Array }[] = []

  constructor(events: PageInletEvents) {
    this.#events = events
  }

  fillSkeleton(receiver: RoundReceiver): void {
    this.#receiver = receiver
  }

  /** @param postcopy is running */
  servePostcopy(postcopy: Postcopy): void {
    this.#postcopy = postcopy
    for (const { lane, frame, payload } of this.#early.splice(0)) postcopy.onBatch(lane, frame, payload)
  }

  /** @throws PROTOCOL: the source sends rounds only when it was told that there is a skeleton */
  get rounds(): RoundReceiver {
    if (this.#receiver === null) throw new PageferryError('PROTOCOL', 'a round before there is a skeleton')
    return this.#receiver
  }

  beginRound(frame: FrameOf<'roundBegin'>): void {
    if (frame.final) this.#finalRound = frame.round
    this.#apply((rounds) => rounds.begin(frame))
  }

  endRound(frame: FrameOf<'roundEnd'>): void {
    const { asId, round } = frame
    this.#apply((rounds) =>
      rounds.end(frame, (pages, durationMs) =>
        this.#events.onRoundApplied({ type: 'roundApplied', asId, round, pages, durationMs }),
      ),
    )
  }

  /** Failures while a round is applied end the migration with their own reason, not with a closed lane. */
  #apply(action: (rounds: RoundReceiver) => void): void {
    const { rounds } = this
    try {
      action(rounds)
    } catch (error) {
      this.#events.onRoundFailed(
        error instanceof PageferryError
          ? error
          : new PageferryError('KERNEL', (error as Error).message, { cause: error }),
      )
    }
  }

  batch(lane: Lane, frame: FrameOf<'pageBatch'>, payload: Uint8Array): void {
    if (this.#postcopy !== null) this.#postcopy.onBatch(lane, frame, payload)
    else if (this.#receiver === null) throw new PageferryError('PROTOCOL', 'pages before there is a skeleton')
    else if (frame.round > this.#finalRound) this.#early.push({ lane, frame, payload })
    else this.#receiver.batch(lane, frame, payload)
  }

  reply(frame: FrameOf<'pageReply'>, payload: Uint8Array): void {
    this.#postcopy?.onReply(frame, payload)
  }
}
