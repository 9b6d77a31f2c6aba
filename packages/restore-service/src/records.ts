import { closeSync, openSync, readFileSync, writeSync } from 'node:fs'
import { PageferryError } from '@pageferry/base'
import type { DestinationReport, VerifySetting } from '@pageferry/migration'
import type { WorkerChannel, WorkerSpec } from '@pageferry/service/worker'

/**
 * Facts that a successor needs beyond the journal and the keeper's holdings. Each field names the step that sets it.
 */
export interface Remembered {
  /** connect: the number of bulk lanes to dial again, and the port of the fault lane. */
  nrBulkLanes?: number
  faultPort?: number
  /** prepare: the address spaces of the workload, its root's first; then the root's name and number of threads. */
  asIds?: number[]
  comm?: string
  threads?: number
  verify?: VerifySetting
}

/** The same, for facts that are found out in the freeze. */
export interface RememberedRestore {
  /** Pid of the restored process, as this host sees it. */
  pid: number
  /** Number of threads at the freeze. */
  threads: number
  /** Final round by as_id. Pages that are pushed later carry the next number. */
  finalRounds: Record<number, number>
  /** Measurements so far. */
  report: DestinationReport
}

export type Known = Remembered & Partial<RememberedRestore>

/**
 * The records of this migration: those of the workers before this one, and those that this one adds.
 *
 *   records of the service  facts known before the freeze
 *   restored.json           facts found out in the freeze, written without waiting for the service or its disk. It is
 *                           created before, because a new file waits for the disk, too. It is not synchronised: the
 *                           process that it describes is lost with the host.
 */
export class DestinationRecords {
  readonly #channel: WorkerChannel
  readonly #path: string
  readonly #known: Known
  #fd = none

  constructor(channel: WorkerChannel, { stateDir, records }: Pick<WorkerSpec, 'stateDir' | 'records'>) {
    this.#channel = channel
    this.#path = `${stateDir}/restored.json`
    this.#known = Object.assign({}, ...records, readRestored(this.#path))
  }

  get known(): Readonly<Known> {
    return this.#known
  }

  /** The final round of a workload that was restored. */
  finalRound(asId: number): number {
    const round = this.#known.finalRounds?.[asId]
    if (round === undefined) throw new PageferryError('INTERNAL', `address space ${asId} was not restored`)
    return round
  }

  /** Resolves when the records would survive the death of this worker and of the service. */
  keep(more: Remembered): Promise<void> {
    Object.assign(this.#known, more)
    return this.#channel.record({ ...more })
  }

  /** Call it before the freeze. */
  createFile(): void {
    this.#fd = openSync(this.#path, 'w', 0o600)
  }

  /** When it returns, the record survives the death of this worker and of the service. Call it once. */
  saveRestore(restored: RememberedRestore): void {
    if (this.#fd === none)
      throw new PageferryError('INTERNAL', `${this.#path} was not created before the freeze`)
    Object.assign(this.#known, restored)
    const content = Buffer.from(JSON.stringify(restored))
    for (let at = 0; at < content.length; ) at += writeSync(this.#fd, content, at)
    closeSync(this.#fd)
    this.#fd = none
  }
}

/** Stands for a descriptor that is not open. */
const none = -1

function readRestored(path: string): Partial<RememberedRestore> {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as RememberedRestore
  } catch {
    // The previous worker was killed earlier, or while it wrote. It had not sent Ready.
    return {}
  }
}
