import { PageferryError } from '@pageferry/base'

/** Why something cannot be moved: what it is, and what would have to change. */
export interface Problem {
  what: string
  reason: string
}

/** All objects that cannot be moved for one reason. */
export interface ProblemGroup extends Problem {
  /** The first few by name, and how many more there are. */
  what: string
  count: number
}

/**
 * Problems of a workload that runs while this looks at it: it may close one end of a pipe when the other has just been
 * seen. Only what is wrong in two looks is wrong.
 */
export function confirmed(look: () => Problem[]): Problem[] {
  const problems = look()
  if (problems.length === 0) return problems
  const before = new Set(problems.map(({ what }) => what))
  return look().filter(({ what }) => before.has(what))
}

/** Names come from the workload, from other users of the host, or from a peer, and a terminal shows them. */
export function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, '?')
}

const namedPerGroup = 3
/** A workload chooses the names of its files, so their number and length are its choice, too. */
const maxGroups = 50
const maxNameChars = 200
const maxSentenceChars = 2000

/** One entry per reason, in the order in which the reasons were found; bounded, whatever the workload has. */
export function groupProblems(problems: Iterable<Problem>): ProblemGroup[] {
  const groups = new Map<string, { names: string[]; count: number }>()
  for (const { what, reason } of problems) {
    const group = groups.get(reason) ?? { names: [], count: 0 }
    groups.set(reason, group)
    if (group.count++ < namedPerGroup) group.names.push(printable(what.slice(0, maxNameChars)))
  }
  const all = [...groups].map(([reason, { names, count }]) => {
    const more = count - names.length
    const what = `${names.join(', ')}${more > 0 ? ` and ${more} more` : ''}`
    return { what, reason: printable(reason.slice(0, maxNameChars)), count }
  })
  if (all.length <= maxGroups) return all
  const rest = all.slice(maxGroups - 1)
  const count = rest.reduce((sum, group) => sum + group.count, 0)
  return [...all.slice(0, maxGroups - 1), { what: `${count} more`, reason: 'for other reasons', count }]
}

/** REFUSED: `intro` and each reason in one sentence for a terminal, the groups in the details. */
export function refusal(intro: string, problems: Iterable<Problem>): PageferryError {
  const groups = groupProblems(problems)
  const reasons = groups.map(({ what, reason }) => `${what}: ${reason}`).join('; ')
  return new PageferryError('REFUSED', `${printable(intro)}: ${reasons}`.slice(0, maxSentenceChars), {
    details: { problems: groups },
  })
}
