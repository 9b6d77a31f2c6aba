import {
  build,
  decodeFromCompressedBase64,
  encodeIntoCompressedBase64,
  type Histogram,
} from 'hdr-histogram-js'

/**
 * HDR histograms of nanoseconds. Files contain them in HdrHistogram's own V2 format, deflated and in base64. Other
 * tools read it, and two histograms can be added without loss.
 */

/** Two digits: one percent, as fine as the probe's buckets. */
const significantDigits = 2

function emptyHistogram(): Histogram {
  return build({ numberOfSignificantValueDigits: significantDigits, bitBucketSize: 64 })
}

/** Makes a histogram from [ns, count] pairs in ascending order. The largest value is exact if `maxNs` is given. */
export function fromBuckets(buckets: readonly (readonly [number, number])[], maxNs?: number): Histogram {
  const histogram = emptyHistogram()
  buckets.forEach(([ns, count], index) => {
    const last = index === buckets.length - 1 && maxNs !== undefined
    if (last) histogram.recordValue(Math.round(maxNs))
    if (count > (last ? 1 : 0)) histogram.recordValueWithCount(Math.round(ns), last ? count - 1 : count)
  })
  return histogram
}

export function fromSamples(samplesNs: Iterable<number>): Histogram {
  const histogram = emptyHistogram()
  for (const ns of samplesNs) histogram.recordValue(Math.max(0, Math.round(ns)))
  return histogram
}

export function encode(histogram: Histogram): string {
  return encodeIntoCompressedBase64(histogram)
}

/** Merges all of them. */
export function merge(encoded: readonly string[]): Histogram {
  const sum = emptyHistogram()
  for (const text of encoded) sum.add(decodeFromCompressedBase64(text, 64))
  return sum
}

/** In microseconds; 0 without samples. */
export function percentileUs(histogram: Histogram, percentile: number): number {
  return histogram.totalCount === 0 ? 0 : histogram.getValueAtPercentile(percentile) / 1000
}

/** [percentile, microseconds] of a curve whose steps get finer towards 100, as far as there are samples for it. */
export function percentileCurve(histogram: Histogram): [percentile: number, us: number][] {
  const curve: [number, number][] = []
  if (histogram.totalCount === 0) return curve
  // Four points for each halving of the part above.
  for (let step = 0; ; step++) {
    const above = 2 ** (-step / 4)
    if (above * histogram.totalCount < 1) break
    const percentile = 100 * (1 - above)
    curve.push([percentile, percentileUs(histogram, percentile)])
  }
  return curve
}
