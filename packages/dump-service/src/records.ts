import { closeSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs'
import { PageferryError } from '@pageferry/base'
import type { SourceReport } from '@pageferry/migration'
import type { PageSet } from '@pageferry/pages'
import type { DumpRequest } from '@pageferry/service'
import type { WorkerChannel, WorkerSpec } from '@pageferry/service/worker'
import type { LanePorts } from './lanes/lanes.js'
import type { OriginalRecord } from './process.js'
import { contentsOfImage, lazyPagesOf } from './rounds/frozen-dump.js'

/** Kept by the service, which outlives its workers: all is known before the workload is touched. */
interface Known extends OriginalRecord {
  /** Where the destination looks for the next worker, too. */
  ports?: LanePorts
}

const pagemapFile = 'pagemap.img'
const dumpEndFile = 'final.json'

/** In final.json: the dump is complete, DumpEnd may have been sent. */
interface DumpEnd {
  finalRound: number
  report: SourceReport
}

/**
 * What must be known after kill -9 of this worker, besides the decisions in the journal:
 *
 *   records of the service  how to find the workload, its cgroup and the ports
 *   scratch                 where the scratch area lies, written before it is mapped
 *   pagemap.img             which pages are lazy
 *   final.json              number of the final round, and the report so far
 *
 * The last two are written while the workload stands still, so they are created before: a new file waits for the file
 * system's journal, which may be waiting for the disk (10 ms were seen). Nothing is synchronised: a host that crashes
 * takes the original along.
 */
export class SourceRecords {
  readonly #channel: WorkerChannel
  readonly #stateDir: string
  readonly #known: Known
  readonly #open = new Map<string, number>()
  #dumpEnd: DumpEnd | null = null

  constructor(spec: WorkerSpec<DumpRequest>, channel: WorkerChannel) {
    this.#stateDir = spec.stateDir
    this.#channel = channel
    this.#known = Object.assign({}, ...spec.records) as Known
    try {
      this.#dumpEnd = JSON.parse(this.#read(dumpEndFile).toString()) as DumpEnd
    } catch {
      // The dump was not complete, or is yet to come.
    }
  }

  /** Resolves when the record would survive the service's death. */
  async save(known: Known): Promise<void> {
    Object.assign(this.#known, known)
    await this.#channel.record({ ...known })
  }

  get ports(): LanePorts | undefined {
    return this.#known.ports
  }

  get original(): OriginalRecord {
    return { ...this.#known, scratch: this.#scratch() }
  }

  /** An empty file says nothing: whoever finds it knows as much as without it. */
  createFiles(): void {
    for (const name of [pagemapFile, dumpEndFile]) {
      this.#open.set(name, openSync(`${this.#stateDir}/${name}`, 'w', 0o600))
    }
  }

  saveScratch(page: number): void {
    writeFileSync(`${this.#stateDir}/scratch`, String(page), { mode: 0o600 })
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
    this.#write(pagemapFile, image)
  }

  /** The lazy pages of the pagemap that was saved. */
  lazyPages(): PageSet {
    return lazyPagesOf(this.#read(pagemapFile))
  }

  /** Every page with contents in the pagemap that was saved. */
  contents(): PageSet {
    return contentsOfImage(this.#read(pagemapFile))
  }

  saveDumpEnd(dumpEnd: DumpEnd): void {
    this.#dumpEnd = dumpEnd
    this.#write(dumpEndFile, Buffer.from(JSON.stringify(dumpEnd)))
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

  #write(name: string, content: Uint8Array): void {
    const fd = this.#open.get(name)
    if (fd === undefined) throw new PageferryError('INTERNAL', `${name} was not created before the freeze`)
    for (let at = 0; at < content.length; ) at += writeSync(fd, content, at)
    closeSync(fd)
    this.#open.delete(name)
  }
}
