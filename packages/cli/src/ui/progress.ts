import { pageBytes } from '@pageferry/base'
import type { Status } from '@pageferry/service/client'
import { MultiBar, type SingleBar } from 'cli-progress'

/** The work under way, as a status describes it. */
interface Work {
  /** The same for all statuses of one piece of work, which share a bar. */
  key: string
  label: string
  done: number
  total: number
}

const states: Record<Status['role'], Record<string, string>> = {
  source: {
    preparing: 'inspecting the process',
    freezing: 'freezing',
    dumping: 'capturing what is left',
    committed: 'handed over',
  },
  destination: { running: 'running on the destination', drained: 'all pages are there' },
}

/**
 * Live view of a migration. On a terminal it shows a bar per round and one for the lazy phase; elsewhere, and in a log
 * file, a line when something ends. Everything goes to standard error; standard output belongs to the result.
 */
export class Progress {
  readonly #bars: MultiBar | null
  readonly #out: NodeJS.WritableStream & { isTTY?: boolean }
  readonly #seen = new Map<string, { bar: SingleBar | undefined; work: Work }>()
  readonly #states = new Set<string>()
  #current: string | undefined
  #stopped = false

  constructor(out: NodeJS.WritableStream & { isTTY?: boolean } = process.stderr) {
    this.#out = out
    this.#bars = out.isTTY
      ? new MultiBar({
          format: ' {label} {bar} {percentage}%  {value}/{total} pages  {size}',
          barsize: 32,
          barCompleteChar: '█',
          barIncompleteChar: '░',
          hideCursor: true,
          // cli-progress catches SIGINT to restore the cursor. Then the command would not get it.
          gracefulExit: false,
          stream: out as NodeJS.WriteStream,
          emptyOnZero: true,
        })
      : null
  }

  readonly update = (status: Status): void => {
    this.#noteState(status)
    const work = workOf(status)
    if (work === null) return
    const seen = this.#seen.get(work.key)
    // A status of a later state still carries the numbers of the round before it.
    if (seen !== undefined && this.#current !== work.key) return
    if (this.#current !== work.key) this.#finishCurrent()
    this.#current = work.key
    if (seen === undefined) {
      const bar = this.#bars?.create(work.total, work.done, payload(work))
      this.#seen.set(work.key, { bar, work })
    } else {
      seen.work = work
      seen.bar?.setTotal(work.total)
      seen.bar?.update(work.done, payload(work))
    }
  }

  /** May be called again, so that cleanup code need not track it. */
  stop(): void {
    if (this.#stopped) return
    this.#stopped = true
    this.#finishCurrent(false)
    this.#bars?.stop()
  }

  /** Prints a line of its own, above the bars. */
  line(text: string): void {
    if (this.#bars === null || !this.#bars.isActive) this.#out.write(`${text}\n`)
    else this.#bars.log(`${text}\n`)
  }

  /** Prints a line for a state without pages, since no bar shows progress there. */
  #noteState({ role, state }: Status): void {
    const text = states[role][state]
    if (text === undefined || this.#states.has(`${role} ${state}`)) return
    this.#states.add(`${role} ${state}`)
    if (this.#bars === null) {
      this.#finishCurrent()
      this.#out.write(`${text}\n`)
    }
  }

  /** `complete`: other work has begun, so this is done, even if its last status was skipped for a newer one. */
  #finishCurrent(complete = true): void {
    const seen = this.#current === undefined ? undefined : this.#seen.get(this.#current)
    this.#current = undefined
    if (seen === undefined) return
    const { label, total } = seen.work
    const done = complete ? total : seen.work.done
    seen.bar?.update(done, payload({ ...seen.work, done }))
    if (this.#bars !== null) return
    const of = done < total ? ` of ${total.toLocaleString('en-US')}` : ''
    this.#out.write(`${label}: ${done.toLocaleString('en-US')}${of} pages, ${size(done)}\n`)
  }
}

function payload(work: Work): { label: string; size: string } {
  return { label: work.label.padEnd(10), size: size(work.done) }
}

function size(pages: number): string {
  return `${((pages * pageBytes) / 1048576).toFixed(1)} MiB`
}

/** The source reports the rounds, the destination the lazy phase: each knows its pages best. */
function workOf({ role, progress }: Status): Work | null {
  if (progress === undefined) return null
  const { phase, round, pages = 0, totalPages, pendingPages } = progress
  if (role === 'source') {
    if (totalPages === undefined || round === undefined) return null
    return {
      key: `round ${round}`,
      label: `round ${round}`,
      done: Math.min(pages, totalPages),
      total: totalPages,
    }
  }
  if (pendingPages === undefined) return null
  const total = totalPages ?? pages + pendingPages
  return { key: `lazy ${phase}`, label: 'lazy phase', done: total - pendingPages, total }
}
