import { PageferryError } from '@pageferry/base'
import { type Frame, type FrameOf, payloadToHashes, WireError } from '@pageferry/wire'

/** A source that is there answers within milliseconds; a worker that was killed is replaced within seconds. */
const answerTimeoutMs = 60_000

interface Question {
  runs: Float64Array
  timer: NodeJS.Timeout
  resolve(hashes: BigUint64Array): void
  reject(error: unknown): void
}

/**
 * Asks the source what the frozen original holds. It does not change any more, so a question that was lost with its
 * connection is asked again.
 */
export class OriginalHashes {
  readonly #asId: number
  readonly #send: (frame: Frame) => void
  /** In the order of asking, which is that of the answers. */
  readonly #open: Question[] = []
  #lost: PageferryError | null = null

  /** @param send on the control lane; what is dropped is sent again after `reconnected` */
  constructor(asId: number, send: (frame: Frame) => void) {
    this.#asId = asId
    this.#send = send
  }

  /**
   * One hash per page. At most maxHashPages pages at once, and hashRequestsMax questions.
   * @throws TIMEOUT; what `give up` was told
   */
  ask(runs: Float64Array): Promise<BigUint64Array> {
    if (this.#lost !== null) return Promise.reject(this.#lost)
    const answer = new Promise<BigUint64Array>((resolve, reject) => {
      const timer = setTimeout(
        () =>
          this.giveUp(
            new PageferryError(
              'TIMEOUT',
              `the source has not said what its pages hold for ${answerTimeoutMs / 1000} s`,
            ),
          ),
        answerTimeoutMs,
      ).unref()
      this.#open.push({ runs, timer, resolve, reject })
    })
    this.#request(runs)
    return answer
  }

  #request(runs: Float64Array): void {
    this.#send({ type: 'hashRequest', asId: this.#asId, runs })
  }

  /** @throws WireError OUT_OF_ORDER: nobody asked for these */
  answered(frame: FrameOf<'pageHashes'>, payload: Uint8Array): void {
    const [question] = this.#open
    const isAnswer =
      question !== undefined &&
      frame.asId === this.#asId &&
      frame.runs.length === question.runs.length &&
      frame.runs.every((value, i) => value === question.runs[i])
    if (!isAnswer) throw new WireError('OUT_OF_ORDER', 'hashes of pages that were not asked for')
    this.#open.shift()
    clearTimeout(question.timer)
    question.resolve(payloadToHashes(payload))
  }

  /** A new control lane. */
  reconnected(): void {
    for (const { runs } of this.#open) this.#request(runs)
  }

  /** Nothing will be answered any more. */
  giveUp(reason: PageferryError): void {
    this.#lost ??= reason
    for (const { timer, reject } of this.#open.splice(0)) {
      clearTimeout(timer)
      reject(reason)
    }
  }
}
