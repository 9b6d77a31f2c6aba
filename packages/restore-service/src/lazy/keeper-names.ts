/**
 * The keeper holds two descriptors of each address space with lazy pages, so that they outlive the worker:
 *
 *   as1.uffd    userfaultfd of address space 1, the as_id of the wire
 *   as1.log     its event journal
 *   as1.2.uffd  userfaultfd of the second child that address space 1 has forked since the resume
 *   as1.2.log   its event journal
 *
 * A child has no as_id: the source never knew it. `as1` and `as1.2` are the names of address spaces in logs, too.
 */
const heldName = /^(as([1-9]\d{0,9})(?:\.[1-9]\d{0,9})*)\.(uffd|log)$/

/** The name of a workload's address space. */
export function nameOf(asId: number): string {
  return `as${asId}`
}

/** @param ordinal 1 for the first child that the parent has forked since the resume */
export function childNameOf(parent: string, ordinal: number): string {
  return `${parent}.${ordinal}`
}

export function uffdNameOf(name: string): string {
  return `${name}.uffd`
}

export function logNameOf(name: string): string {
  return `${name}.log`
}

/** An address space for which the keeper holds a descriptor. */
export interface HeldSpace {
  name: string
  asId: number
  /** False for a child that was forked since the resume. */
  isRoot: boolean
  hasUffd: boolean
  hasLog: boolean
}

/** Lists parents before children. Names of another form belong to other users of the keeper. */
export function heldSpaces(names: Iterable<string>): HeldSpace[] {
  const found = new Map<string, HeldSpace>()
  for (const held of names) {
    const match = heldName.exec(held)
    if (match === null) continue
    const [, name, asId, kind] = match
    const space = found.get(name) ?? {
      name,
      asId: Number(asId),
      isRoot: name === nameOf(Number(asId)),
      hasUffd: false,
      hasLog: false,
    }
    if (kind === 'uffd') space.hasUffd = true
    else space.hasLog = true
    found.set(name, space)
  }
  return [...found.values()].sort((a, b) => compareNames(a.name, b.name))
}

/** By as_id, then by the ordinals of the forks as numbers; a name comes before those that begin with it. */
function compareNames(a: string, b: string): number {
  const left = a.slice(2).split('.')
  const right = b.slice(2).split('.')
  for (let i = 0; i < Math.min(left.length, right.length); i++) {
    const difference = Number(left[i]) - Number(right[i])
    if (difference !== 0) return difference
  }
  return left.length - right.length
}
