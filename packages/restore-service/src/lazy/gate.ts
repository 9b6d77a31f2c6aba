import { InstallGate } from '@pageferry/kernel'
import type { LazyMap, MapEvent } from '@pageferry/pages'

/**
 * Makes the gate of the bulk lanes. It is open for pages that lie at their source address and that no event has named.
 * The worker installs all others itself, and the gate says that there are some.
 */
export function gateFor(all: LazyMap, unsettled: readonly MapEvent[]): InstallGate {
  const lazy = all.fork()
  for (const event of unsettled) {
    if (event.type === 'remap') {
      lazy.remove(event.from, event.nr)
      lazy.remove(event.to, event.nr)
    } else lazy.remove(event.first, event.nr)
  }
  const runs: number[] = []
  let nrMoved = 0
  lazy.forEachPending((page, source, nr) => {
    if (page === source) runs.push(page, nr)
    else nrMoved += nr
  })
  const gate = InstallGate.create(Float64Array.from(runs))
  if (nrMoved > 0 || unsettled.length > 0) gate.noteOthers()
  return gate
}
