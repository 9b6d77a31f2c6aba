import { MODES } from '@pageferry/service/client'
import { baseSeed, soak } from '@pageferry/testing/seeds'

/** The three ways memory moves. */
export const modes = MODES
export type Mode = (typeof modes)[number]

/** Every workload runs as root and as another user: much of restoring is about privileges. */
export const users = [
  { name: 'root', uid: undefined },
  { name: 'uid 1000', uid: 1000 },
] as const

/**
 * Every program in every mode as every user, in a soak. Otherwise each program in each mode goes as one of the users, in
 * turn and by the seed: both users meet every program and every mode in each run, and every combination in two.
 */
export function combinations(
  programs: readonly string[],
): { name: string; mode: Mode; user: string; uid?: number }[] {
  const all = programs.flatMap((name) => modes.map((mode) => ({ name, mode })))
  const odd = baseSeed % users.length
  return all.flatMap((each, nr) =>
    users
      .filter((_, u) => soak || u === (nr + odd) % users.length)
      .map(({ name: user, uid }) => ({ ...each, user, uid })),
  )
}
