// What is random in a test, and how much of it there is.

/** `PAGEFERRY_SEED` repeats a run that failed; every test prints its seed. */
export const baseSeed = Number(process.env.PAGEFERRY_SEED ?? Date.now() % 1_000_000)

/** The long form of the tests: hours of CI are not spent on every change. */
export const soak = process.env.PAGEFERRY_SOAK === '1'

/** Numbers in [0, 1) that a seed determines (mulberry32). */
export function randomFrom(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}
