/** A link that is slower than the lab's. */
export interface LinkOptions {
  /** Delay added to the lab's own, half of it in each direction. */
  rttMs: number
  /** Each half of the round trip is up to half of this longer or shorter. */
  jitterMs: number
  /** Mbit/s in each direction, shared by all connections; 0: no limit. */
  rateMbit: number
}

export function describeLink({ rttMs, jitterMs, rateMbit }: LinkOptions): string {
  const parts = [
    ...(rttMs > 0 ? [`${rttMs} ms rtt`] : []),
    ...(jitterMs > 0 ? [`${jitterMs} ms jitter`] : []),
    ...(rateMbit > 0 ? [`${rateMbit} Mbit/s`] : []),
  ]
  return parts.length > 0 ? parts.join(', ') : 'relay alone'
}

/** Bytes per second, 0 without a limit. */
export function rateBytes({ rateMbit }: LinkOptions): number {
  return Math.round((rateMbit * 1e6) / 8)
}
