import { closeSync, openSync, rmSync } from 'node:fs'
import { performance } from 'node:perf_hooks'
import type { PageferryError } from '@pageferry/base'
import type { Restorer } from '@pageferry/checkpoint'
import type { VerifyReport, VerifySetting } from '@pageferry/migration'
import { type AreaMap, checkInstalled, PageSet } from '@pageferry/pages'
import type { Frame, FrameOf } from '@pageferry/wire'
import type { Destination } from '../destination.js'
import type { FinalSets } from '../rounds/receiver.js'
import { Findings } from './findings.js'
import { HashLog, readHashLog } from './hash-log.js'
import { OriginalHashes } from './original-hashes.js'
import { PageHasher } from './page-hasher.js'
import { compareWithOriginal, unreadable } from './proof.js'

export interface VerifierOptions {
  when: VerifyReport['when']
  asId: number
  /** Path of the HashLog's file. */
  logPath: string
  /** Sends on the control lane. */
  send(frame: Frame): void
}

/**
 * Makes the verifier of one address space; null: verification is off. In a successor it continues with the log on disk.
 */
export function verifierFor(
  { spec, lanes, report }: Pick<Destination, 'spec' | 'lanes' | 'report'>,
  asId: number,
  when: VerifySetting = 'off',
): Verifier | null {
  if (when === 'off') return null
  const logPath = `${spec.stateDir}/hashes-${asId}`
  return new Verifier({ when, asId, logPath, send: (frame) => lanes.send(frame) }, report.verify)
}

/**
 * --verify on the destination. Every installed page is hashed. Pages of rounds are read back from the stopped skeleton
 * by the thread that installed them; lazy pages are hashed before they are installed. When no page is lazy any more,
 * the source is asked for the hashes of the frozen original. So neither faults nor the push wait for it.
 *
 *   final pagemap    `checkAbsent`: which pages must be absent, and which present. Costs one look at the page tables
 *   before Ready     `checkSkeleton`, only before-resume: reads everything back and compares it
 *   after the drain  `prove`: compares all pages on record
 *
 * Both checks before Ready end the migration on the source. A failure of `prove` comes too late for that.
 */
export class Verifier {
  readonly #options: VerifierOptions
  readonly #original: OriginalHashes
  readonly #findings = new Findings()
  #log: HashLog | null = null
  #areas: AreaMap | null = null
  /** Pages that a previous worker compared before Ready. */
  readonly #pagesBefore: number
  #downtimeMs: number
  #proofMs = 0

  /** @param before the report of the previous worker, whose log this one continues */
  constructor(options: VerifierOptions, before?: VerifyReport | null) {
    this.#options = options
    this.#original = new OriginalHashes(options.asId, (frame) => options.send(frame))
    this.#pagesBefore = before?.pages ?? 0
    this.#downtimeMs = before?.downtimeMs ?? 0
  }

  /** Creates the log of a new migration, before the first round. */
  createLog(): void {
    HashLog.create(this.#options.logPath)
  }

  /** Log for the threads that install rounds. before-resume needs none: it reads everything back at once. */
  get roundLog(): string | undefined {
    return this.#options.when === 'after-resume' ? this.#options.logPath : undefined
  }

  get lazyLog(): string {
    return this.#options.logPath
  }

  get report(): VerifyReport {
    const found = this.#findings.report(this.#areas)
    return {
      when: this.#options.when,
      ...found,
      pages: this.#pagesBefore + found.pages,
      downtimeMs: this.#downtimeMs,
      proofMs: this.#proofMs,
    }
  }

  /**
   * The final pagemap was applied, and its last pages are being installed. Checks that PARENT pages are there, and that
   * no other page is there that would keep one from being fetched. The installers read PRESENT pages back.
   * @throws VERIFY_FAILED
   */
  checkAbsent(restorer: Restorer, sets: FinalSets): void {
    if (this.#options.when !== 'after-resume') return
    this.#noteDowntime(() => {
      const { missing, unexpected } = checkInstalled(restorer.presentPages(), sets, restorer.map.map)
      this.#areas = restorer.map.map
      this.#findings.differing.union(missing.subtract(sets.present)).union(unexpected)
      if (!this.#open().append('kept', sets.parent.clone().union(sets.present).runTable()))
        this.#noteFailedLog()
      this.#throwIfDifferent()
    })
  }

  /**
   * before-resume: checks the whole stopped skeleton after the final round: which pages are there, and their content.
   * @throws VERIFY_FAILED
   */
  async checkSkeleton(restorer: Restorer, sets: FinalSets, signal: AbortSignal): Promise<void> {
    this.#areas = restorer.map.map
    if (this.#options.when !== 'before-resume') return
    const began = performance.now()
    const { missing, unexpected } = checkInstalled(restorer.presentPages(), sets, restorer.map.map)
    this.#findings.differing.union(missing).union(unexpected)
    const memFd = openSync(`/proc/${restorer.pid}/mem`, 'r')
    try {
      const hasher = new PageHasher(restorer.pid, memFd)
      const kept = sets.parent.clone().union(sets.present).subtract(missing)
      await compareWithOriginal(kept, (runs) => hasher.hash(runs), this.#original, this.#findings, signal)
    } finally {
      closeSync(memFd)
    }
    this.#downtimeMs += performance.now() - began
    this.#throwIfDifferent()
  }

  #noteDowntime(action: () => void): void {
    const began = performance.now()
    try {
      action()
    } finally {
      this.#downtimeMs += performance.now() - began
    }
  }

  #throwIfDifferent(): void {
    if (!this.#findings.areGood) throw this.#findings.toError(this.#areas)
  }

  /** Records a reply on the fault lane before its pages are installed. Page numbers are the source's. */
  noteLazy(runs: Float64Array, pages: Uint8Array, zeroRuns: Float64Array): void {
    if (!this.#open().appendLazy(runs, pages, zeroRuns)) this.noteUnlogged([runs, zeroRuns])
  }

  /** Notes pages that are installed although their hashes could not be written. */
  noteUnlogged(tables: Float64Array[]): void {
    for (const table of tables)
      this.#findings.noteUnproven(PageSet.fromRuns(table), 'their hashes could not be written')
  }

  #noteFailedLog(): void {
    this.#findings.reason ||= 'the hashes of the installed pages could not be written'
  }

  /**
   * Runs when no page is lazy any more. Ends when every installed page was compared, or cannot be. The workload may
   * have ended meanwhile: its pages are on record.
   * @throws VERIFY_FAILED; the signal's reason
   */
  async prove(signal: AbortSignal): Promise<void> {
    const began = performance.now()
    try {
      const installed = readHashLog(this.#options.logPath)
      this.#findings.differing.union(installed.contradictory)
      this.#findings.noteUnproven(installed.unhashed, 'no hash of them is on record')
      const own = (runs: Float64Array, nrPages: number): BigUint64Array => installed.hashesOf(runs, nrPages)
      await compareWithOriginal(installed.comparable, own, this.#original, this.#findings, signal)
    } catch (error) {
      signal.throwIfAborted()
      throw unreadable(error)
    } finally {
      this.#proofMs = performance.now() - began
    }
    this.#throwIfDifferent()
  }

  answered(frame: FrameOf<'pageHashes'>, payload: Uint8Array): void {
    this.#original.answered(frame, payload)
  }

  /** Continues on a new control lane. */
  reconnected(): void {
    this.#original.reconnected()
  }

  /** The original died: the remaining pages can never be compared. */
  originalLost(reason: PageferryError): void {
    this.#original.giveUp(reason)
  }

  /** Call it once the outcome is on record. */
  removeLog(): void {
    this.#log?.close()
    this.#log = null
    rmSync(this.#options.logPath, { force: true })
  }

  #open(): HashLog {
    this.#log ??= HashLog.open(this.#options.logPath)
    return this.#log
  }
}
