import type { Destination } from '../destination.js'
import { verifyReportOf } from './report.js'

/**
 * Completes the proof while the workload already runs. The frozen original is kept until it ends.
 * @throws VERIFY_FAILED; the signal's reason
 */
export async function prove({ members, report, log }: Destination, signal: AbortSignal): Promise<void> {
  const all = [...members.values()]
  try {
    for (const { verifier } of all) await verifier?.prove(signal)
  } catch (error) {
    if (!signal.aborted) log.error({ verify: verifyReportOf(all) }, (error as Error).message)
    throw error
  } finally {
    report.verify = verifyReportOf(all)
  }
}
