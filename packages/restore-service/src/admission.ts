import { PageferryError, pageBytes } from '@pageferry/base'
import {
  areOwnOffsets,
  bootId,
  type ClockReading,
  type Clocks,
  checkHosts,
  checkNeededFiles,
  hostFacts,
  memoryRoom,
  offsetsFor,
  ownClocks,
  requireCapabilities,
} from '@pageferry/checkpoint'
import type { FrameOf } from '@pageferry/wire'

/**
 * Checks whether the workload that Begin describes can live on this host.
 * @throws REFUSED, NOT_PERMITTED or UNSUPPORTED_HOST; nothing was touched on either side
 */
export function checkAdmission(begin: FrameOf<'begin'>): void {
  requireCapabilities('destination')
  checkHosts(begin.source, hostFacts())
  checkNeededFiles(begin.files)
  const residentBytes = begin.residentPages * pageBytes
  const room = memoryRoom()
  if (residentBytes > room.bytes) {
    throw new PageferryError(
      'REFUSED',
      `the workload has ${residentBytes} bytes resident, the destination has room for ${room.bytes} (${room.limitedBy})`,
    )
  }
}

/** Clock readings to take. The one with the fastest round trip is the most exact. */
const clockRequests = 5

/**
 * Returns the offsets of a time namespace in which the workload's clocks go on; null when it needs none. `ask` reads
 * the clocks on the source.
 */
export async function clockOffsets(
  begin: FrameOf<'begin'>,
  ask: () => Promise<ClockReading>,
): Promise<Clocks | null> {
  const sameKernel = begin.source.bootId === bootId()
  const measured: Clocks[] = []
  for (let i = 0; i < clockRequests; i++) {
    const before = ownClocks()
    measured.push(offsetsFor(await ask(), before, sameKernel))
  }
  const best = measured.reduce((a, b) => (b.monotonicNs < a.monotonicNs ? b : a))
  return areOwnOffsets(best) ? null : best
}
