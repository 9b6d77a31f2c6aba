import { readFileSync, writeFileSync } from 'node:fs'
import { PageferryError } from '@pageferry/base'
import type { PageSet } from '@pageferry/memory'
import type { SourceReport } from '@pageferry/migration'
import type { DumpRequest } from '@pageferry/service'
import type { WorkerChannel, WorkerSpec } from '@pageferry/service/worker'
import { lazyPagesOf } from './frozen-dump.js'
import type { OriginalRecord } from './original-process.js'

/** Kept by the service, which outlives its workers: all is known before the workload is touched. */
interface Known extends OriginalRecord {
  /** Where the destination looks for the next worker, too. */
  port?: number
}

/** In final.json: the dump is complete, DumpEnd may have been sent. */
interface DumpEnd {
  finalRound: number
  report: SourceReport
}

/**
 * What must be known after kill -9 of this worker, besides the decisions in the journal:
 *
 *   records of the service  how to find the workload, its cgroup and the port
 *   scratch                 where the scratch area lies, written before it is mapped
 *   pagemap.img             which pages are lazy
 *   final.json              number of the final round, and the report so far
 *
 * The files are written in the freeze and not synchronised: a host that crashes takes the original along.
 */
export class SourceRecords {
  readonly #channel: WorkerChannel
  readonly #stateDir: string
  readonly #known: Known
  #dumpEnd: DumpEnd | null = null

  constructor(spec: WorkerSpec<DumpRequest>, channel: WorkerChannel) {
    this.#stateDir = spec.stateDir
    this.#channel = channel
    this.#known = Object.assign({}, ...spec.records) as Known
    try {
      this.#dumpEnd = JSON.parse(this.#read('final.json').toString()) as DumpEnd
    } catch {
      // The dump was not complete, or is yet to come.
    }
  }

  /** Resolves when the record would survive the service's death. */
  async save(known: Known): Promise<void> {
    Object.assign(this.#known, known)
    await this.#channel.record({ ...known })
  }

  get port(): number | undefined {
    return this.#known.port
  }

  get original(): OriginalRecord {
    return { ...this.#known, scratch: this.#scratch() }
  }

  saveScratch(page: number): void {
    this.#write('scratch', String(page))
  }

  #scratch(): number | undefined {
    try {
      return Number(this.#read('scratch'))
    } catch {
      // Killed before the capture.
      return undefined
    }
  }

  savePagemap(image: Uint8Array): void {
    this.#write('pagemap.img', image)
  }

  /** The lazy pages of the pagemap that was saved. */
  lazyPages(): PageSet {
    return lazyPagesOf(this.#read('pagemap.img'))
  }

  saveDumpEnd(dumpEnd: DumpEnd): void {
    this.#dumpEnd = dumpEnd
    this.#write('final.json', JSON.stringify(dumpEnd))
  }

  /** The dump of a workload that was handed over. */
  get finalRound(): number {
    if (this.#dumpEnd === null) throw new PageferryError('INTERNAL', 'there is no complete dump')
    return this.#dumpEnd.finalRound
  }

  /** null: the destination cannot have everything yet. */
  get dumpEnd(): DumpEnd | null {
    return this.#dumpEnd
  }

  /** For the keepers of the rehearsal's dummies. */
  get rehearsalDir(): string {
    return `${this.#stateDir}/rehearsal`
  }

  #read(name: string): Buffer {
    return readFileSync(`${this.#stateDir}/${name}`)
  }

  #write(name: string, content: string | Uint8Array): void {
    writeFileSync(`${this.#stateDir}/${name}`, content, { mode: 0o600 })
  }
}
