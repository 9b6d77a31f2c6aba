import { closeSync, openSync, readFileSync, writeSync } from 'node:fs'
import { PageferryError } from '@pageferry/base'
import type { DestinationReport, VerifySetting } from '@pageferry/migration'
import type { WorkerChannel, WorkerSpec } from '@pageferry/service/worker'

/** What a successor must know beyond the journal and what the keeper holds. Each from the step named on. */
export interface Remembered {
  /** connect: how many bulk lanes are dialled again, and the port of the fault lane. */
  nrBulkLanes?: number
  faultPort?: number
  /** prepare: the address spaces of the workload, its root's first; the root's name, and its threads of that moment. */
  asIds?: number[]
  comm?: string
  threads?: number
  verify?: VerifySetting
}

/** The same, but found out in the freeze. */
export interface RememberedRestore {
  /** The restored process as this host sees it. */
  pid: number
  /** That it was frozen with. */
  threads: number
  /** By as_id. Pages that are pushed later carry the number after it. */
  finalRounds: Record<number, number>
  /** What had been measured by then. */
  report: DestinationReport
}

export type Known = Remembered & Partial<RememberedRestore>

/**
 * The records of this migration: what the workers before this one have said, and what this one adds.
 *
 *   records of the service  what is known before the freeze
 *   restored.json           what is found out in it: nobody waits for the service then, nor for its disk. Created before
 *                           (a new file waits for the disk, too) and not synchronised: what it tells of is lost with
 *                           the host.
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

  /** Of a workload that was restored. */
  finalRound(asId: number): number {
    const round = this.#known.finalRounds?.[asId]
    if (round === undefined) throw new PageferryError('INTERNAL', `address space ${asId} was not restored`)
    return round
  }

  /** Resolves when it would survive the death of this worker and of the service. */
  keep(more: Remembered): Promise<void> {
    Object.assign(this.#known, more)
    return this.#channel.record({ ...more })
  }

  /** Before the freeze. */
  createFile(): void {
    this.#fd = openSync(this.#path, 'w', 0o600)
  }

  /** Survives the death of this worker and of the service when it returns. Once. */
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

/** Of a descriptor that is not open. */
const none = -1

function readRestored(path: string): Partial<RememberedRestore> {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as RememberedRestore
  } catch {
    // The worker before was killed earlier, or while it wrote: it had not said Ready.
    return {}
  }
}
