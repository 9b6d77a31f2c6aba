import { PageferryError } from '@pageferry/base'
import { type Frame, type FrameOf, payloadToHashes, WireError } from '@pageferry/wire'

/** A live source answers within milliseconds; a killed worker is replaced within seconds. */
const answerTimeoutMs = 60_000

interface Question {
  runs: Float64Array
  timer: NodeJS.Timeout
  resolve(hashes: BigUint64Array): void
  reject(error: unknown): void
}

/**
 * Asks the source for hashes of the frozen original. The original does not change any more, so a question that was lost
 * with its connection is asked again.
 */
export class OriginalHashes {
  readonly #asId: number
  readonly #send: (frame: Frame) => void
  /** Questions in the order of asking, which is the order of the answers. */
  readonly #open: Question[] = []
  #lost: PageferryError | null = null

  /** @param send sends on the control lane; dropped questions are repeated after `reconnected` */
  constructor(asId: number, send: (frame: Frame) => void) {
    this.#asId = asId
    this.#send = send
  }

  /**
   * Asks for one hash per page, at most maxHashPages pages at once and hashRequestsMax questions.
   * @throws TIMEOUT; the reason given to `giveUp`
   */
  ask(runs: Float64Array): Promise<BigUint64Array> {
    if (this.#lost !== null) return Promise.reject(this.#lost)
    const answer = new Promise<BigUint64Array>((resolve, reject) => {
      const timer = setTimeout(
        () =>
          this.giveUp(
            new PageferryError(
              'TIMEOUT',
              `the source has not sent the hashes of its pages for ${answerTimeoutMs / 1000} s`,
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

  /** @throws WireError OUT_OF_ORDER: these hashes were not asked for */
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

  /** Repeats the open questions on a new control lane. */
  reconnected(): void {
    for (const { runs } of this.#open) this.#request(runs)
  }

  /** Rejects all open and later questions. */
  giveUp(reason: PageferryError): void {
    this.#lost ??= reason
    for (const { timer, reject } of this.#open.splice(0)) {
      clearTimeout(timer)
      reject(reason)
    }
  }
}
