// What is random in a test, and how much of it there is.

/** `PAGEFERRY_SEED` repeats a run that failed; every run of the tests prints its seed. */
export const baseSeed = Number(process.env.PAGEFERRY_SEED ?? Date.now() % 1_000_000)

/** The long form of the tests: hours of CI are not spent on every change. */
export const soak = process.env.PAGEFERRY_SOAK === '1'
