/**
 * Collects what is young now, so that nothing needs to be collected while the workload stands still. Takes 1 to 3 ms. Does
 * nothing in a process that was not started as a worker (worker-process.ts).
 */
export function collectYoungGarbage(): void {
  ;(globalThis as { gc?(options: { type: 'minor' }): void }).gc?.({ type: 'minor' })
}
