import type fc from 'fast-check'

/**
 * Runs of a property. A failure prints its seed and path: replay it with
 * `FC_SEED=<seed> FC_PATH=<path>`; `FC_RUNS=<factor>` multiplies the number of histories.
 */
export function fcOptions<T>(numRuns: number): fc.Parameters<T> {
  const { FC_SEED, FC_PATH, FC_RUNS } = process.env
  return {
    numRuns: Math.ceil(numRuns * Number(FC_RUNS ?? 1)),
    ...(FC_SEED === undefined ? {} : { seed: Number(FC_SEED) }),
    ...(FC_PATH === undefined ? {} : { path: FC_PATH }),
  }
}
