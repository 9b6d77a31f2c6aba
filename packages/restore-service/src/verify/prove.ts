import type { Destination } from '../destination.js'
import { verifyReportOf } from './report.js'

/**
 * The workload runs on its own now; the frozen original waits for this.
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
