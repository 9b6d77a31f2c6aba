import { closeSync, openSync, readFileSync, writeSync } from 'node:fs'
import { PageferryError } from '@pageferry/base'
import type { SourceReport } from '@pageferry/migration'
import type { PageSet } from '@pageferry/pages'
import type { DumpRequest } from '@pageferry/service'
import type { WorkerChannel, WorkerSpec } from '@pageferry/service/worker'
import type { LanePorts } from './lanes/lanes.js'
import { contentsOfImage, lazyPagesOf } from './rounds/frozen-dump.js'
import type { WorkloadRecord } from './workload.js'

/** Records kept by the service, which outlives its workers. All of them are known before the workload is touched. */
interface Known extends WorkloadRecord {
  /** Ports at which the destination looks for the next worker, too. */
  ports?: LanePorts
}

const pagemapFile = (asId: number): string => `pagemap-${asId}.img`
const dumpEndFile = 'final.json'

/** Content of final.json: the dump is complete, and DumpEnd may have been sent. */
interface DumpEnd {
  finalRound: number
  report: SourceReport
}

/**
 * Facts that a successor needs after kill -9 of this worker, besides the decisions in the journal:
 *
 *   records of the service  how to find the workload, its address spaces and the ports
 *   holds                   everything that must be undone (holds.ts)
 *   pagemap-AS.img          which pages of the address space are lazy
 *   final.json              number of the final round, and the report so far
 *
 * The last two are written while the workload stands still, so they are created before the freeze. A new file waits for
 * the file system's journal, which may wait for the disk (10 ms were seen). Nothing is synchronised: a host that
 * crashes loses the original, too.
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
      // The dump was not complete, or has not begun.
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

  get workload(): WorkloadRecord {
    return this.#known
  }

  /** Creates the files; call it before the freeze. An empty file counts as a missing one. */
  createFiles(asIds: Iterable<number>): void {
    for (const name of [...[...asIds].map(pagemapFile), dumpEndFile]) {
      this.#open.set(name, openSync(`${this.#stateDir}/${name}`, 'w', 0o600))
    }
  }

  savePagemap(asId: number, image: Uint8Array): void {
    this.#write(pagemapFile(asId), image)
  }

  /** The lazy pages of the saved pagemap. */
  lazyPages(asId: number): PageSet {
    return lazyPagesOf(this.#read(pagemapFile(asId)))
  }

  /** Every page with contents in the saved pagemap. */
  contents(asId: number): PageSet {
    return contentsOfImage(this.#read(pagemapFile(asId)))
  }

  saveDumpEnd(dumpEnd: DumpEnd): void {
    this.#dumpEnd = dumpEnd
    this.#write(dumpEndFile, Buffer.from(JSON.stringify(dumpEnd)))
  }

  /** The final round of a workload that was handed over. */
  get finalRound(): number {
    if (this.#dumpEnd === null) throw new PageferryError('INTERNAL', 'there is no complete dump')
    return this.#dumpEnd.finalRound
  }

  /** null: the destination cannot have everything yet. */
  get dumpEnd(): DumpEnd | null {
    return this.#dumpEnd
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
