import { rehearse, requireCapabilities } from '@pageferry/checkpoint'
import type { Workload as WorkloadStatus } from '@pageferry/service'
import type { Source } from './source.js'

/**
 * Refuses everything that can be refused. The workload runs and is not touched, so a refusal costs it nothing.
 *
 * @param workloadNow returns what the service may say of the workload
 */
export async function prepare(source: Source, workloadNow: () => WorkloadStatus): Promise<void> {
  const { spec, workload, lanes, records, channel } = source
  requireCapabilities('source')
  workload.open(spec.id)
  await workload.probe()
  const { ports, url } = await lanes.listen()
  await records.save({ ...workload.record, ports })
  channel.send({ type: 'listening', dataUrl: url, workload: workloadNow() })
  // The rehearsal proves that this host can dump. A dummy dies with this process, so it is no hold.
  if (!channel.isRehearsed) await rehearse(`${spec.stateDir}/rehearsal`, 'capture')
}
