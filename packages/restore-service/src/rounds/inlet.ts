import { PageferryError } from '@pageferry/base'
import type { FrameOf } from '@pageferry/wire'
import type { FinalSets, RoundReceiver } from './receiver.js'

export interface RoundEvents {
  /** A whole round is installed. */
  onRoundApplied(frame: FrameOf<'roundApplied'>): void
  /** The memory map is the final one, and the images of the state are there. May throw as the round itself does. */
  onFinalMap(): void
  /** What becomes of each page is known, and the last ones are being installed. Likewise. */
  onFinalPagemap(sets: FinalSets): void
  onRoundFailed(error: PageferryError): void
}

/** What the control lane says of rounds, once there is a skeleton to apply them to. */
export class RoundInlet {
  readonly #events: RoundEvents
  #receiver: RoundReceiver | null = null

  constructor(events: RoundEvents) {
    this.#events = events
  }

  fillSkeleton(receiver: RoundReceiver): void {
    this.#receiver = receiver
  }

  /** @throws PROTOCOL: the source sends rounds only when it was told that there is a skeleton */
  get receiver(): RoundReceiver {
    if (this.#receiver === null) throw new PageferryError('PROTOCOL', 'a round before there is a skeleton')
    return this.#receiver
  }

  begin(frame: FrameOf<'roundBegin'>): void {
    this.#apply((rounds) => {
      rounds.begin(frame)
      if (frame.final) this.#events.onFinalMap()
    })
  }

  imageCame(name: string): void {
    this.#apply((rounds) => {
      const sets = rounds.imageCame(name)
      if (sets !== null) this.#events.onFinalPagemap(sets)
    })
  }

  end(frame: FrameOf<'roundEnd'>): void {
    const { asId, round } = frame
    this.#apply((rounds) =>
      rounds.end(frame, (pages, durationMs) =>
        this.#events.onRoundApplied({ type: 'roundApplied', asId, round, pages, durationMs }),
      ),
    )
  }

  /** Failures while a round is applied end the migration with their own reason, not with a closed lane. */
  #apply(action: (rounds: RoundReceiver) => void): void {
    const { receiver } = this
    try {
      action(receiver)
    } catch (error) {
      this.#events.onRoundFailed(
        error instanceof PageferryError
          ? error
          : new PageferryError('KERNEL', (error as Error).message, { cause: error }),
      )
    }
  }
}
