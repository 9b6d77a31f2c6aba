import { performance } from 'node:perf_hooks'
import { pageBytes } from '@pageferry/base'
import { type CompressionDecision, CompressionRule, type DeliveryRate, samplePages } from '@pageferry/pages'
import type { Settings } from '@pageferry/service'
import { type LaneTerms, maxPayloadBytes } from '@pageferry/wire'
import { PageCompressor } from '@pageferry/wire/sockets'

/**
 * Compression of all bulk lanes of a worker, on its main thread. Pages to be compressed are read into one shared buffer
 * and compressed into the buffer that is sent, within one turn.
 */
export class BulkCompression {
  readonly setting: Settings['compression']
  readonly #nrLanes: number
  readonly #maxBytesPerMs: number
  readonly #compressor = new PageCompressor()
  readonly #pages = Buffer.allocUnsafeSlow(maxPayloadBytes)
  readonly #lanes = new Set<LaneCompression>()
  readonly #onChange: (isOn: boolean) => void

  /** @param onChange called when a lane begins to compress, or the last one stops */
  constructor(
    {
      compression,
      bulkLanes,
      maxBandwidthMbit,
    }: Pick<Settings, 'compression' | 'bulkLanes' | 'maxBandwidthMbit'>,
    onChange: (isOn: boolean) => void,
  ) {
    this.setting = compression
    this.#nrLanes = bulkLanes
    const limit = maxBandwidthMbit === 0 ? Number.POSITIVE_INFINITY : (maxBandwidthMbit * 1e6) / 8 / 1000
    this.#maxBytesPerMs = limit / bulkLanes
    this.#onChange = onChange
  }

  get counts(): PageCompressor['counts'] {
    return this.#compressor.counts
  }

  /** Makes the compression of a new connection. null: nothing is ever compressed on it. */
  forLane({ compression, windowBytes }: LaneTerms): LaneCompression | null {
    if (compression === 'none' || this.setting === 'off') return null
    const options = { nrSharing: this.#nrLanes, maxBytesPerMs: this.#maxBytesPerMs, windowBytes }
    const rule = this.setting === 'auto' ? new CompressionRule(options) : null
    const lane = new LaneCompression(this.#compressor, this.#pages, rule, () => this.#changed())
    this.#lanes.add(lane)
    return lane
  }

  /** The connection is lost. */
  forget(lane: LaneCompression | null): void {
    if (lane !== null && this.#lanes.delete(lane)) this.#changed()
  }

  #changed(): void {
    this.#onChange([...this.#lanes].some((lane) => lane.isOn))
  }
}

/** Compression on one connection. */
export class LaneCompression {
  readonly #compressor: PageCompressor
  readonly #pages: Buffer
  readonly #rule: CompressionRule | null
  readonly #onChange: () => void
  #wasOn = false

  /** @param rule null: always compress */
  constructor(compressor: PageCompressor, pages: Buffer, rule: CompressionRule | null, onChange: () => void) {
    this.#compressor = compressor
    this.#pages = pages
    this.#rule = rule
    this.#onChange = onChange
  }

  get isOn(): boolean {
    return this.#rule?.isOn ?? true
  }

  next(heldBack: boolean, rate: DeliveryRate | null): CompressionDecision {
    const decision = this.#rule?.next(performance.now(), heldBack, rate) ?? 'compress'
    this.#noteChange()
    return decision
  }

  /** The buffer for pages that `compress` will take. */
  get pages(): Buffer {
    return this.#pages
  }

  /**
   * Compresses the first `nrBytes` of `pages` into `to`. Returns the number of bytes there, 0 when it is not worth it.
   */
  compress(nrBytes: number, to: Uint8Array): number {
    const began = performance.now()
    const bytes = this.#compressor.compress(this.#pages.subarray(0, nrBytes), to)
    const now = performance.now()
    this.#rule?.measured(nrBytes, bytes || nrBytes, now - began, now)
    return bytes
  }

  /** Measures with pages that are sent uncompressed. */
  sample(pages: Uint8Array): void {
    const piece = pages.subarray(0, samplePages * pageBytes)
    const began = performance.now()
    const bytes = this.#compressor.measure(piece, this.#pages)
    const now = performance.now()
    this.#rule?.measured(piece.length, bytes || piece.length, now - began, now)
    this.#noteChange()
  }

  #noteChange(): void {
    if (this.isOn === this.#wasOn) return
    this.#wasOn = this.isOn
    this.#onChange()
  }
}
