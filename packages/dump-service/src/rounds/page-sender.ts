import { pageBytes } from '@pageferry/base'
import type { AreaMap, PageSet } from '@pageferry/pages'
import { isPrivateAnon } from '@pageferry/pages'
import { maxBatchPages, maxRunsPerBatch } from '@pageferry/wire'
import { BulkLane } from '../lanes/bulk-lane.js'
import type { Pace } from './pacing.js'
import type { PageReader } from './page-reader.js'

export interface SentPages {
  pages: number
  zeroPages: number
  /** Bytes on the wire. */
  bytes: number
  /** Bytes of the pages with content, before compression. */
  pageBytes: number
  /** Batches of this round on each lane, for the round's barrier. */
  batchesPerLane: number[]
}

export interface SendOptions {
  asId: number
  round: number
  /** Areas, to leave out zeros of private anonymous memory: a missing page reads as zeros there. */
  map: AreaMap
  /** Final round: every page must arrive, zeros too, and none may vanish. */
  final: boolean
  /** Undefined in the final round: the workload stands still. */
  pacing?: Pace
  signal: AbortSignal
  onSent?(runs: Float64Array): void
  onZero?(runs: Float64Array): void
  onVanished?(runs: Float64Array): void
  onProgress?(pages: number): void
}

/** Sends a set of pages over the bulk lanes, each batch on the first lane that has room. */
export async function sendPages(
  pages: PageSet,
  reader: PageReader,
  lanes: readonly BulkLane[],
  options: SendOptions,
): Promise<SentPages> {
  const sent: SentPages = {
    pages: 0,
    zeroPages: 0,
    bytes: 0,
    pageBytes: 0,
    batchesPerLane: lanes.map(() => 0),
  }
  const table = new Float64Array(2 * maxRunsPerBatch)
  let from = 0
  while (from >= 0) {
    if (await options.pacing?.turn(options.signal)) for (const each of lanes) each.noteHeldBack()
    const index = await laneWithRoom(lanes, options.signal)
    const lane = lanes[index]
    const { nrRuns, nrPages, nextPage } = pages.fillRunTable(table, from, maxRunsPerBatch, maxBatchPages)
    from = nextPage
    if (nrPages === 0) break
    const buffer = lane.takeBuffer()
    const read = reader.read(table, nrRuns, buffer.pages, !options.final)
    const zeroRuns = options.final ? read.zeroRuns : zerosThatTravel(read.zeroRuns, options.map)
    if (read.nrPages > 0 || zeroRuns.length > 0) {
      const { asId, round } = options
      const bytes = lane.send({ asId, round, runs: read.runs, zeroRuns }, buffer, read.nrPages * pageBytes)
      options.pacing?.sent(bytes)
      sent.bytes += bytes
      sent.pageBytes += read.nrPages * pageBytes
      sent.batchesPerLane[index]++
    } else lane.giveBack(buffer)
    sent.pages += read.nrPages + read.nrZeroPages
    sent.zeroPages += read.nrZeroPages
    options.onSent?.(read.runs)
    options.onZero?.(read.zeroRuns)
    if (read.vanished.length > 0) options.onVanished?.(read.vanished)
    options.onProgress?.(sent.pages)
  }
  return sent
}

/** Returns the zero pages that must be sent. In file mappings and shared memory a missing page is not zero. */
function zerosThatTravel(zeroRuns: Float64Array, map: AreaMap): Float64Array {
  const travel: number[] = []
  for (let r = 0; r < zeroRuns.length; r += 2) {
    for (let page = zeroRuns[r]; page < zeroRuns[r] + zeroRuns[r + 1]; ) {
      const area = map.find(page)
      const end =
        area === undefined ? page + 1 : Math.min(area.start + area.nrPages, zeroRuns[r] + zeroRuns[r + 1])
      if (area !== undefined && !isPrivateAnon(area)) travel.push(page, end - page)
      page = end
    }
  }
  return Float64Array.from(travel)
}

async function laneWithRoom(lanes: readonly BulkLane[], signal: AbortSignal): Promise<number> {
  for (;;) {
    signal.throwIfAborted()
    const index = lanes.findIndex((lane) => lane.hasRoom)
    if (index >= 0) return index
    await BulkLane.changed(lanes, signal)
  }
}
