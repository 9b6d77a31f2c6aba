import { PageferryError, RecordFile } from '@pageferry/base'

/*
 * A hold is anything that a worker does to a workload or to a host and that must be undone on every way out: success,
 * failure, kill -9. Each of the two workers has one list of holds, and only that list undoes anything.
 *
 *     announce   puts the facts on record        the worker may die from here on
 *     take       does the act                    release undoes it, in this worker
 *                                                recover undoes it, in a successor
 *
 * A record means "perhaps": a successor finds the act done, done in part, not done, or undone already.
 *
 * An act that begins and ends within one call (the stop in which a tracker is opened) is ended by a `finally` there. If
 * kill -9 would leave something of it behind, that belongs to a hold all the same.
 */

/**
 * A kind of hold. `Facts` is what a successor needs to know, as JSON. `Held` is the object with which the worker undoes
 * it.
 */
export interface Hold<Facts extends object, Held> {
  /** Name in the record. */
  readonly name: string
  /** Succeeds when the act was done in part, and when the workload is gone. */
  release(held: Held): void
  /** Idempotent. Succeeds when the workload is gone, or when another process has its pid. */
  recover(facts: Facts): void
}

// biome-ignore lint/suspicious/noExplicitAny: the list does not know what its kinds keep
type AnyHold = Hold<any, any>

interface Entry {
  readonly hold: AnyHold
  readonly facts: object
  state: 'announced' | 'taken' | 'left'
  held?: unknown
}

type HoldRecord = { hold: string; key: number; facts: object } | { released: true }

/**
 * The holds of one worker. They are undone in reverse order of the constructor's list, which is the order in which they
 * are taken.
 *
 * Their file is not synchronised: a host that crashes loses the workload, too. Appending to it does not wait for the
 * disk, so a hold may be announced while the workload stands still. Announce it earlier if possible.
 */
export class Holds {
  readonly #order: readonly AnyHold[]
  readonly #file: RecordFile
  readonly #entries = new Map<string, Entry>()

  /**
   * @param path of the file; the holds of a worker before this one are read from it
   * @throws PageferryError INTERNAL when the file is damaged, or names a hold that is not in `order`
   */
  constructor(path: string, order: readonly AnyHold[]) {
    this.#order = order
    this.#file = RecordFile.open(path)
    for (const record of this.#file.records as HoldRecord[]) {
      if ('released' in record) this.#entries.clear()
      else {
        const hold = order.find(({ name }) => name === record.hold)
        if (hold === undefined) throw new PageferryError('INTERNAL', `${path} names the hold ${record.hold}`)
        this.#entries.set(keyOf(hold, record.key), { hold, facts: record.facts, state: 'left' })
      }
    }
  }

  /**
   * Records an act before it is done. A second call with other facts, before the act, replaces the first.
   *
   * @param key distinguishes several holds of one kind, for example by as_id
   */
  announce<Facts extends object>(hold: Hold<Facts, never>, facts: Facts, key = 0): void {
    this.#file.append({ hold: hold.name, key, facts } satisfies HoldRecord, false)
    this.#entries.set(keyOf(hold, key), { hold, facts, state: 'announced' })
  }

  /** The recorded facts, by this worker or the one before; undefined: there are none. */
  facts<Facts extends object>(hold: Hold<Facts, never>, key = 0): Facts | undefined {
    return this.#entries.get(keyOf(hold, key))?.facts as Facts | undefined
  }

  /**
   * Does the announced act. A successor may take an act that its predecessor announced, and is responsible for it from
   * then on.
   *
   * @param act must have no effect when it throws; an act that is done in part returns first and is completed
   * afterwards
   * @throws INTERNAL when it is not on record, or is taken already; errors of `act`
   */
  take<Facts extends object, Held>(hold: Hold<Facts, Held>, act: (facts: Facts) => Held, key = 0): Held {
    const entry = this.#entries.get(keyOf(hold, key))
    if (entry === undefined) throw new PageferryError('INTERNAL', `the hold ${hold.name} is not on record`)
    if (entry.state === 'taken') throw new PageferryError('INTERNAL', `the hold ${hold.name} is taken`)
    const held = act(entry.facts as Facts)
    entry.held = held
    entry.state = 'taken'
    return held
  }

  /** Undoes a hold that this worker has taken. Idempotent. */
  release<Held>(hold: Hold<never, Held>, key = 0): void {
    const entry = this.#entries.get(keyOf(hold, key))
    if (entry?.state === 'taken') undo(entry)
  }

  /** Ends a hold whose task another hold has taken over, so that there is nothing to undo. Idempotent. */
  handOver<Held>(hold: Hold<never, Held>, key = 0): void {
    const entry = this.#entries.get(keyOf(hold, key))
    if (entry !== undefined) forget(entry)
  }

  /**
   * Undoes everything, in reverse order. Idempotent. If some of it fails the rest is undone all the same.
   * @throws the first error; failed holds stay on the list
   */
  releaseAll(): void {
    const errors: unknown[] = []
    const done = [...this.#entries.values()].filter(({ state }) => state !== 'announced')
    if (done.length === 0) return
    for (const hold of [...this.#order].reverse()) {
      const entries = done.filter((entry) => entry.hold === hold)
      for (const entry of entries.reverse()) {
        try {
          undo(entry)
        } catch (error) {
          errors.push(error)
        }
      }
    }
    if (errors.length > 0) throw errors[0]
    this.#noteReleased()
  }

  /** Another migration may do the same to the workload now, and a successor must not undo that. */
  #noteReleased(): void {
    try {
      this.#file.append({ released: true } satisfies HoldRecord, false)
    } catch {
      // The disk is full. A successor finds everything undone.
    }
  }

  /** Closes the file only. */
  close(): void {
    this.#file.close()
  }
}

function keyOf(hold: { name: string }, key: number): string {
  return `${hold.name}:${key}`
}

function undo(entry: Entry): void {
  if (entry.state === 'taken') entry.hold.release(entry.held)
  else entry.hold.recover(entry.facts)
  forget(entry)
}

function forget(entry: Entry): void {
  entry.state = 'announced'
  entry.held = undefined
}
