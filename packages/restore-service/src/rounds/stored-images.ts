import { closeSync, mkdirSync, openSync, rmSync, symlinkSync, writeFileSync, writeSync } from 'node:fs'
import { PageferryError, pageBytes } from '@pageferry/base'
import { encodeImage, encodePagemap, IMG_VERSION, imageFileName, PE_PRESENT } from '@pageferry/images'
import { memory } from '@pageferry/kernel'
import type { PageSet } from '@pageferry/pages'

const pagesPerWrite = 256
const pagesId = 1
const parentDirectory = 'pre-dump'

/**
 * Image files on disk, in CRIU's layout (`--images DIR`). DIR holds the final dump. Its pagemap marks pages that came
 * in a round PE_PARENT; those pages are in DIR/pre-dump, to which the link `parent` points. Lazy pages are in neither:
 * they stay with the original until they are requested.
 */
export class StoredImages {
  readonly #directory: string

  constructor(directory: string) {
    this.#directory = directory
    mkdirSync(`${directory}/${parentDirectory}`, { recursive: true, mode: 0o700 })
    rmSync(`${directory}/parent`, { force: true })
    symlinkSync(parentDirectory, `${directory}/parent`)
  }

  store(name: string, bytes: Uint8Array): void {
    writeFileSync(`${this.#directory}/${name}`, bytes, { mode: 0o600 })
  }

  /** Stores the contents of the stopped skeleton: the files hold exactly the memory that will run. */
  storePages(
    process: { pid: number; memFd: number; nsPid: number },
    sets: { parent: PageSet; present: PageSet },
  ): void {
    this.#writePages(`${this.#directory}/${imageFileName('pages', pagesId)}`, process, sets.present)
    const parent = `${this.#directory}/${parentDirectory}`
    this.#writePages(`${parent}/${imageFileName('pages', pagesId)}`, process, sets.parent)
    const runs = sets.parent.runTable()
    const nrRuns = runs.length >> 1
    const flags = new Uint8Array(nrRuns).fill(PE_PRESENT)
    const pagemap = encodePagemap({ pagesId, runs, nrRuns, flags })
    writeFileSync(`${parent}/${imageFileName('pagemap', process.nsPid)}`, pagemap, { mode: 0o600 })
    const inventory = encodeImage('inventory', { imgVersion: IMG_VERSION, fdinfoPerId: true })
    writeFileSync(`${parent}/${imageFileName('inventory')}`, inventory, { mode: 0o600 })
  }

  #writePages(file: string, { pid, memFd }: { pid: number; memFd: number }, pages: PageSet): void {
    const buffer = Buffer.allocUnsafeSlow(pagesPerWrite * pageBytes)
    const table = new Float64Array(2 * pagesPerWrite)
    const fd = openSync(file, 'w', 0o600)
    try {
      let from = 0
      while (from >= 0) {
        const { nrRuns, nrPages, nextPage } = pages.fillRunTable(table, from, pagesPerWrite, pagesPerWrite)
        from = nextPage
        const got = memory.readRuns(pid, memFd, table, nrRuns, buffer)
        if (got !== nrPages)
          throw new PageferryError('INTERNAL', `only ${got} of ${nrPages} pages can be stored`)
        for (let at = 0; at < got * pageBytes; ) at += writeSync(fd, buffer, at, got * pageBytes - at)
      }
    } finally {
      closeSync(fd)
    }
  }
}
