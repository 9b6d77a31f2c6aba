import type { FreezerRecord } from '@pageferry/checkpoint'
import type { DestinationReport } from '@pageferry/migration'
import type { WorkerChannel } from '@pageferry/service/worker'

/** What a successor must know beyond the journal and what the keeper holds. Each from the step named on. */
export interface Remembered {
  /** connect: how many bulk lanes are dialled again. */
  nrBulkLanes?: number
  /** prepare, before the cgroup exists: what has to be removed. */
  freezer?: FreezerRecord
  /** prepare: the workload as the source calls it. */
  nsPid?: number
  comm?: string
  threads?: number
  /** restore: the restored process as this host sees it. */
  pid?: number
  /** restore: pages that are pushed later carry the number after it. */
  finalRound?: number
  /** restore: what had been measured by then. */
  report?: DestinationReport
}

/** The records of this migration: what the workers before this one have said, and what this one adds. */
export class DestinationRecords {
  readonly #channel: WorkerChannel
  readonly #known: Remembered

  constructor(channel: WorkerChannel, earlier: Record<string, unknown>[]) {
    this.#channel = channel
    this.#known = Object.assign({}, ...earlier)
  }

  get known(): Readonly<Remembered> {
    return this.#known
  }

  /** Resolves when it would survive the death of this worker and of the service. */
  keep(more: Remembered): Promise<void> {
    Object.assign(this.#known, more)
    return this.#channel.record({ ...more })
  }
}
