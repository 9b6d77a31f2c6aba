import { performance } from 'node:perf_hooks'
import type { DestinationState } from '@pageferry/migration'

/** How often an unanswered Drained or Abandoned is repeated. */
const repeatMs = 5_000
/**
 * How long a complete copy waits for a source that cannot be reached. This is longer than an uncommitted source waits
 * to be asked. Giving up is safe then and later: a source that has committed hears it and resumes.
 */
const readyPatienceMs = 60_000

/** Posts a timeout, again and again, while an answer of the source is overdue. The machine has no clock. */
export function watchSilence(
  look: () => { state: DestinationState; isConnected: boolean },
  onOverdue: (what: string) => void,
): void {
  let deafSince: number | null = null
  setInterval(() => {
    const { state, isConnected } = look()
    const { name, settled } = state
    if (name === 'drained' || (name === 'abandoned' && !settled)) onOverdue('no answer from the source')
    const now = performance.now()
    deafSince = name === 'ready' && !isConnected ? (deafSince ?? now) : null
    if (deafSince !== null && now - deafSince > readyPatienceMs) {
      onOverdue('the source is out of reach and has not answered Ready')
    }
  }, repeatMs).unref()
}
