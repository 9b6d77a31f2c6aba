import { addressOf, PageferryError, pageBytes } from '@pageferry/base'
import { memory } from '@pageferry/kernel'
import type { Area, AreaKind } from '@pageferry/pages'
import { readMaps } from '../../proc/maps.js'
import type { RemoteCall, SkeletonProcess } from '../../remote/skeleton-process.js'

/**
 * The vdso and its data, which the kernel maps into every process. The skeleton's are moved to the workload's
 * addresses.
 */

const kernelKinds = new Set<AreaKind>(['vdso', 'vvar', 'vvar-vclock', 'vsyscall'])
/** Their names in /proc/PID/maps, if they have a place in each process. */
const names: Partial<Record<AreaKind, string>> = {
  vdso: '[vdso]',
  vvar: '[vvar]',
  'vvar-vclock': '[vvar_vclock]',
}

export function isKernelArea(area: Area | undefined): boolean {
  return area !== undefined && kernelKinds.has(area.kind)
}

/**
 * Moves those among `areas`.
 * @throws REFUSED when this kernel's differ
 */
export function moveKernelAreas(skeleton: SkeletonProcess, areas: readonly Area[]): void {
  const wanted = areas.flatMap(({ kind, start, nrPages }) => {
    const name = names[kind]
    return name === undefined ? [] : [{ name, start, nrPages }]
  })
  if (wanted.length === 0) return
  const own = readMaps(skeleton.pid)
  const moves = wanted.map(({ name, start, nrPages }) => {
    const from = own.find((line) => line.name === name)
    if (from === undefined || from.nrPages !== nrPages) {
      throw new PageferryError('REFUSED', `this kernel has no ${name} of ${nrPages} pages`)
    }
    return { from: from.start, to: start, nrPages }
  })
  if (moves.every(({ from, to }) => from === to)) return
  // Moves through a third place: the target of one area may overlap the present place of another.
  const total = moves.reduce((sum, { nrPages }) => sum + nrPages, 0)
  let via = skeleton.findGap(total, wanted)
  const away: RemoteCall[] = []
  const there: RemoteCall[] = []
  for (const { from, to, nrPages } of moves) {
    away.push(mremapCall(from, via, nrPages))
    there.push(mremapCall(via, to, nrPages))
    via += nrPages
  }
  skeleton.all([...away, ...there])
}

function mremapCall(from: number, to: number, nrPages: number): RemoteCall {
  const length = nrPages * pageBytes
  return {
    name: 'mremap',
    args: [addressOf(from), length, length, memory.MREMAP_MAYMOVE | memory.MREMAP_FIXED, addressOf(to)],
  }
}
