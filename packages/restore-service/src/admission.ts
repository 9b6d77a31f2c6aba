import { PageferryError, pageBytes } from '@pageferry/base'
import {
  bootId,
  type Clocks,
  checkHosts,
  checkNeededFiles,
  hostFacts,
  memoryRoom,
  offsetsFor,
  requireCapabilities,
} from '@pageferry/checkpoint'
import type { FrameOf } from '@pageferry/wire'

/**
 * Whether the workload that Begin describes can live on this host.
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

/**
 * Offsets of a time namespace under which no clock of the workload goes backwards; null when it needs none. Then its
 * clocks, read on the other side between two readings of ours, can be the same as ours.
 */
export function clockOffsets(
  begin: FrameOf<'begin'>,
  theirs: Clocks,
  before: Clocks,
  after: Clocks,
): Clocks | null {
  const sameKernel = begin.source.bootId === bootId()
  const readBetween =
    before.monotonicNs <= theirs.monotonicNs &&
    theirs.monotonicNs <= after.monotonicNs &&
    before.boottimeNs <= theirs.boottimeNs &&
    theirs.boottimeNs <= after.boottimeNs
  return sameKernel && readBetween ? null : offsetsFor(theirs, before)
}
