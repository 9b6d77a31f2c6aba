import { type Area, AreaMap, diffAreas } from '../src/areas.js'
import { type PagemapEntry, readPagemapEntries } from '../src/final-pagemap.js'
import { PageSet } from '../src/page-set.js'
import { checkInstalled, reconcile } from '../src/reconcile.js'

/**
 * A source and a destination small enough to be obviously right. The source has the kernel's semantics as
 * kernel-facts measured them, in particular what the tracker does *not* say: a discarded page vanishes from
 * the scan, or leaves a marker that reads as SWAPPED; moved and new mappings are not tracked.
 */
export const modelPages = 40

interface Mapping {
  kind: 'anon' | 'heap' | 'file-private' | 'shared-anon' | 'file-shared'
  /** File name or object; which page of it. */
  backing: string
  backingPage: number
  prot: number
  locked: boolean
  tracked: boolean
}

/** Page table entry. A marker is write-protected, reads as SWAPPED and has no content. */
interface Entry {
  state: 'present' | 'swapped' | 'marker'
  content: number
  protectedByTracker: boolean
}

function fileContent(backing: string, page: number): number {
  return 10_000 + backing.charCodeAt(0) * 100 + page
}

export class ModelSource {
  readonly mappings: Array<Mapping | undefined> = new Array(modelPages).fill(undefined)
  readonly #entries: Array<Entry | undefined> = new Array(modelPages).fill(undefined)
  readonly #objects = new Map<string, number>()
  #nextObject = 0
  /** A device wrote behind the page tables: nothing may be trusted. */
  hadDeviceWrites = false

  map(first: number, nr: number, kind: Mapping['kind']): void {
    const backing = kind === 'shared-anon' ? `object${this.#nextObject++}` : kind === 'anon' ? '' : 'x'
    for (let p = first; p < Math.min(first + nr, modelPages); p++) {
      this.#drop(p)
      this.mappings[p] = { kind, backing, backingPage: p - first, prot: 3, locked: false, tracked: false }
    }
  }

  unmap(first: number, nr: number): void {
    for (let p = first; p < Math.min(first + nr, modelPages); p++) this.#drop(p)
  }

  /** mremap(MAYMOVE|FIXED): page table entries move, tracking does not. */
  remap(from: number, to: number, nr: number): void {
    if (Math.abs(from - to) < nr || Math.max(from, to) + nr > modelPages) return
    for (let i = 0; i < nr; i++) if (this.mappings[from + i] === undefined) return
    for (let i = 0; i < nr; i++) {
      const entry = this.#entries[from + i]
      this.mappings[to + i] = { ...(this.mappings[from + i] as Mapping), tracked: false }
      this.#entries[to + i] =
        entry === undefined || entry.state === 'marker' ? undefined : { ...entry, protectedByTracker: false }
      this.#drop(from + i)
    }
  }

  change(first: number, nr: number, what: Partial<Pick<Mapping, 'prot' | 'locked'>>): void {
    for (let p = first; p < Math.min(first + nr, modelPages); p++) {
      const mapping = this.mappings[p]
      if (mapping !== undefined) this.mappings[p] = { ...mapping, ...what }
    }
  }

  write(p: number, content: number): void {
    const mapping = this.mappings[p]
    if (mapping === undefined) return
    if (isShared(mapping)) this.#objects.set(objectKey(mapping), content)
    this.#entries[p] = { state: 'present', content, protectedByTracker: false }
  }

  /** O_DIRECT, AIO, io_uring: the content changes and no page table entry tells. */
  deviceWrite(p: number, content: number): void {
    const entry = this.#entries[p]
    if (entry?.state !== 'present' || this.mappings[p]?.kind !== 'anon') return
    entry.content = content
    this.hadDeviceWrites = true
  }

  /** Also what reading from outside does: it faults the page in. Undefined when nothing is mapped. */
  read(p: number): number | undefined {
    const content = this.peek(p)
    const mapping = this.mappings[p]
    if (mapping === undefined || mapping.kind === 'file-private') return content
    const entry = this.#entries[p]
    if (isShared(mapping)) this.#objects.set(objectKey(mapping), content as number)
    this.#entries[p] = {
      state: 'present',
      content: content as number,
      protectedByTracker: entry?.protectedByTracker ?? false,
    }
    return content
  }

  peek(p: number): number | undefined {
    const mapping = this.mappings[p]
    if (mapping === undefined) return undefined
    if (isShared(mapping)) return this.#objects.get(objectKey(mapping)) ?? 0
    const entry = this.#entries[p]
    if (entry !== undefined && entry.state !== 'marker') return entry.content
    return mapping.kind === 'file-private' ? fileContent(mapping.backing, mapping.backingPage) : 0
  }

  /** MADV_DONTNEED. Only mappings with something behind them keep a marker of the write protection. */
  discard(first: number, nr: number): void {
    for (let p = first; p < Math.min(first + nr, modelPages); p++) {
      const mapping = this.mappings[p]
      if (mapping === undefined) continue
      const marks = !isAnon(mapping) && this.#entries[p]?.protectedByTracker === true
      this.#entries[p] = marks ? { state: 'marker', content: 0, protectedByTracker: true } : undefined
    }
  }

  /** MADV_REMOVE on shared memory: the object loses the pages. */
  punch(first: number, nr: number): void {
    for (let p = first; p < Math.min(first + nr, modelPages); p++) {
      const mapping = this.mappings[p]
      if (mapping?.kind !== 'shared-anon') continue
      this.#objects.delete(objectKey(mapping))
      this.discard(p, 1)
    }
  }

  swapOut(p: number): void {
    const entry = this.#entries[p]
    if (entry?.state === 'present' && isAnon(this.mappings[p] as Mapping)) entry.state = 'swapped'
  }

  /** A tracker that protects whole ranges leaves markers where nothing is; it has to say where. */
  protectRange(first: number, nr: number): PageSet {
    const marked = new PageSet()
    for (let p = first; p < Math.min(first + nr, modelPages); p++) {
      if (!this.mappings[p]?.tracked || this.#entries[p] !== undefined) continue
      this.#entries[p] = { state: 'marker', content: 0, protectedByTracker: true }
      marked.addRange(p, 1)
    }
    return marked
  }

  areas(): AreaMap {
    const areas: Area[] = []
    for (let p = 0; p < modelPages; p++) {
      const mapping = this.mappings[p]
      if (mapping === undefined) continue
      const { kind, backing, backingPage, prot, locked } = mapping
      const anon = isAnon(mapping)
      const shared = isShared(mapping)
      areas.push({
        start: p,
        nrPages: 1,
        kind,
        prot,
        flags: locked ? 0x2022 : 0x22,
        madv: 0,
        growsDown: false,
        lazyEligible: anon && !locked,
        offset: anon ? 0n : BigInt(backingPage) * 4096n,
        ...(anon ? {} : shared ? { backingId: backing } : { path: backing }),
      })
    }
    return new AreaMap(areas)
  }

  /** Registers what is mapped now, then one PAGEMAP_SCAN that reports and re-protects. */
  scan(): PageSet {
    const written = new PageSet()
    for (const mapping of this.mappings) if (mapping !== undefined) mapping.tracked = true
    this.#entries.forEach((entry, p) => {
      if (entry === undefined || entry.protectedByTracker) return
      written.addRange(p, 1)
      entry.protectedByTracker = true
    })
    return written
  }

  finalScan() {
    const sets = {
      presentOrSwapped: new PageSet(),
      written: new PageSet(),
      doubtful: new PageSet(),
      objectPages: new PageSet(),
    }
    for (let p = 0; p < modelPages; p++) {
      const mapping = this.mappings[p]
      const entry = this.#entries[p]
      if (mapping !== undefined && isShared(mapping) && this.#objects.has(objectKey(mapping)))
        sets.objectPages.addRange(p, 1)
      if (mapping === undefined || entry === undefined) continue
      sets.presentOrSwapped.addRange(p, 1)
      if (entry.state !== 'present') sets.doubtful.addRange(p, 1)
      if (!mapping.tracked || !entry.protectedByTracker) sets.written.addRange(p, 1)
    }
    return sets
  }

  #drop(p: number): void {
    this.mappings[p] = undefined
    this.#entries[p] = undefined
  }
}

/** Knows only what the messages say. */
export class ModelDestination {
  #areas = new AreaMap()
  readonly #installed = new Map<number, number>()

  applyAreas(areas: AreaMap): void {
    for (const change of diffAreas(this.#areas, areas)) {
      if (change.op !== 'unmap') continue
      for (let p = change.first; p < change.first + change.nr; p++) this.#installed.delete(p)
    }
    this.#areas = areas
  }

  install(p: number, content: number): void {
    if (this.#areas.find(p) === undefined) throw new Error(`page ${p} is sent but not mapped`)
    this.#installed.set(p, content)
  }

  /** Reconcile, PRESENT pages, and what the workload would then read from each page. */
  finish(
    areas: AreaMap,
    entries: Iterable<PagemapEntry>,
    sourceContent: (page: number) => number,
  ): Map<number, number> {
    const final = readPagemapEntries(entries)
    this.applyAreas(areas)
    const { discard, missing } = reconcile(this.#there(), final, areas)
    if (!missing.isEmpty) throw new Error(`PARENT pages are not installed: ${[...missing.runs()].join(' ')}`)
    discard.forEachRun((first, nr) => {
      for (let p = first; p < first + nr; p++) this.#installed.delete(p)
    })
    final.present.forEachRun((first, nr) => {
      for (let p = first; p < first + nr; p++) this.install(p, sourceContent(p))
    })
    const verdict = checkInstalled(this.#there(), final, areas)
    if (!verdict.missing.isEmpty || !verdict.unexpected.isEmpty) throw new Error('verify failed')

    const memory = new Map<number, number>()
    for (const area of areas.areas) {
      for (let p = area.start; p < area.start + area.nrPages; p++) {
        const installed = this.#installed.get(p)
        if (area.kind === 'file-shared') continue
        if (installed !== undefined) memory.set(p, installed)
        else if (final.lazy.has(p)) memory.set(p, sourceContent(p))
        else if (area.kind === 'file-private')
          memory.set(p, fileContent(area.path as string, Number(area.offset / 4096n) + p - area.start))
        else memory.set(p, 0)
      }
    }
    return memory
  }

  #there(): PageSet {
    const set = new PageSet()
    for (const p of this.#installed.keys()) set.addRange(p, 1)
    return set
  }
}

function isAnon(mapping: Mapping): boolean {
  return mapping.kind === 'anon' || mapping.kind === 'heap'
}
function isShared(mapping: Mapping): boolean {
  return mapping.kind === 'shared-anon'
}
function objectKey(mapping: Mapping): string {
  return `${mapping.backing}:${mapping.backingPage}`
}
