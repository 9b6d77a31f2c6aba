// Random values of a test, and how many of them it uses.

/** `PAGEFERRY_SEED` repeats a run that failed; every run of the tests prints its seed. */
export const baseSeed = Number(process.env.PAGEFERRY_SEED ?? Date.now() % 1_000_000)

/** The long form of the tests, which is not run for every change: it takes hours of CI. */
export const soak = process.env.PAGEFERRY_SOAK === '1'
