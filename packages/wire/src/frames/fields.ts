import Long from 'long'
import { WireError } from './errors.js'
import { maxJsonChars, pageLimit } from './limits.js'

/**
 * One kind of field: converts its protobuf value to ours and back, and checks it. Both directions are checked, so a
 * defect of ours shows where the frame is built, not at the peer.
 *
 * protobufjs silently encodes a bigint as 0. So 64-bit fields pass through `Long`, and only values that a double holds
 * exactly are plain numbers.
 */
export interface Field<T> {
  /**
   * Never throws for values that protobufjs can decode. It may return any value of type T, also ones that `check`
   * refuses.
   */
  fromWire(raw: unknown): T
  /** @throws WireError naming `at`, the path of the field */
  check(value: T, at: string): void
  toWire(value: T): unknown
}

// biome-ignore lint/suspicious/noExplicitAny: a table of fields of different types; `ValuesOf` gives each its own back
export type Fields = Readonly<Record<string, Field<any>>>
type ValueOf<F> = F extends Field<infer T> ? T : never
export type ValuesOf<S> = { -readonly [K in keyof S]: ValueOf<S[K]> }

const u64Limit = 2n ** 64n

function toNumber(raw: unknown): number {
  return typeof raw === 'number' ? raw : (raw as Long).toNumber()
}

function same(value: unknown): unknown {
  return value
}

/** A whole number, from uint32 or uint64. */
export function count(min = 0, max: number = Number.MAX_SAFE_INTEGER): Field<number> {
  return {
    fromWire: toNumber,
    check(value, at) {
      if (!Number.isSafeInteger(value) || value < min || value > max) {
        throw new WireError('BAD_VALUE', `${at} is ${value}, outside ${min} to ${max}`)
      }
    },
    toWire: same,
  }
}

const maxU32 = 2 ** 32 - 1

/** A uint32 that counts from `min`. */
export function u32(min = 0): Field<number> {
  return count(min, maxU32)
}

/** All 64 bits: nanoseconds, feature masks. */
export const u64: Field<bigint> = {
  fromWire: (raw) => (typeof raw === 'number' ? BigInt(raw) : (raw as Long).toBigInt()),
  check(value, at) {
    if (typeof value !== 'bigint' || value < 0n || value >= u64Limit) {
      throw new WireError('BAD_VALUE', `${at} is ${value}, not a 64-bit value`)
    }
  },
  toWire: (value) => Long.fromBigInt(value, true),
}

/** A measured duration in milliseconds. */
export const duration: Field<number> = {
  // Makes a negative zero positive: it would not survive being sent on.
  fromWire: (raw) => toNumber(raw) + 0,
  check(value, at) {
    if (!Number.isFinite(value) || value < 0) {
      throw new WireError('BAD_VALUE', `${at} is ${value}, not a duration`)
    }
  },
  toWire: same,
}

export const flag: Field<boolean> = {
  fromWire: Boolean,
  check(value, at) {
    if (typeof value !== 'boolean') throw new WireError('BAD_VALUE', `${at} is not a boolean`)
  },
  toWire: same,
}

export function text(maxChars: number, pattern?: RegExp): Field<string> {
  return {
    fromWire: String,
    check(value, at) {
      if (typeof value !== 'string') throw new WireError('BAD_VALUE', `${at} is not a string`)
      if (value.length > maxChars) {
        throw new WireError(
          'TOO_LARGE',
          `${at} has ${value.length} characters, at most ${maxChars} are allowed`,
        )
      }
      if (pattern && !pattern.test(value)) throw new WireError('BAD_VALUE', `${at} does not match ${pattern}`)
    },
    toWire: same,
  }
}

/** A JSON object as text; empty stands for {}. */
export const json: Field<string> = {
  ...text(maxJsonChars),
  check(value, at) {
    text(maxJsonChars).check(value, at)
    if (value !== '' && parseObject(value) === undefined) {
      throw new WireError('BAD_VALUE', `${at} is not a JSON object`)
    }
  },
}

export function parseObject(value: string): Record<string, unknown> | undefined {
  try {
    const parsed: unknown = JSON.parse(value)
    return typeof parsed === 'object' && parsed !== null && !Array.isArray(parsed) ? { ...parsed } : undefined
  } catch {
    return undefined
  }
}

/** One of a few words, as a string on the wire. */
export function word<const W extends string>(...words: readonly W[]): Field<W> {
  return {
    fromWire: (raw) => String(raw) as W,
    check(value, at) {
      if (!words.includes(value)) throw new WireError('BAD_VALUE', `${at} is none of ${words.join(', ')}`)
    },
    toWire: same,
  }
}

/** A protobuf enum whose value n stands for `words[n - 1]`; 0 is invalid. */
export function enumeration<const W extends string>(words: readonly W[]): Field<W> {
  return {
    ...word(...words),
    fromWire: (raw) => words[toNumber(raw) - 1],
    toWire: (value) => words.indexOf(value) + 1,
  }
}

/** A digest: `length` bytes, or none if it is unknown. Copied, so that it does not keep the message alive. */
export function digest(length: number): Field<Uint8Array> {
  return {
    fromWire: (raw) => new Uint8Array(raw as Uint8Array),
    check(value, at) {
      if (!(value instanceof Uint8Array) || (value.length !== length && value.length !== 0)) {
        throw new WireError('BAD_VALUE', `${at} is not ${length} bytes`)
      }
    },
    toWire: same,
  }
}

export function list<T>(item: Field<T>, max: number, min = 0): Field<T[]> {
  return {
    // One item more than allowed lets `check` refuse the list, and the rest costs no memory.
    fromWire: (raw) => Array.from((raw as unknown[]).slice(0, max + 1), item.fromWire),
    check(value, at) {
      if (!Array.isArray(value) || value.length < min) {
        throw new WireError('BAD_VALUE', `${at} has too few items`)
      }
      if (value.length > max) throw new WireError('TOO_LARGE', `${at} has more than ${max} items`)
      for (let i = 0; i < value.length; i++) item.check(value[i], `${at}[${i}]`)
    },
    toWire: (value) => value.map(item.toWire),
  }
}

/**
 * A run table: [firstPage, nrPages] pairs, ascending and disjoint. Runs may touch, where an area ends between two
 * pages. Encoding reads the array without a copy.
 */
export function runs(maxRuns: number, maxPages: number = pageLimit): Field<Float64Array> {
  return {
    fromWire(raw) {
      const values = raw as unknown[]
      const table = new Float64Array(Math.min(values.length, 2 * maxRuns + 1))
      for (let i = 0; i < table.length; i++) table[i] = toNumber(values[i])
      return table
    },
    check(table, at) {
      if (!(table instanceof Float64Array)) throw new WireError('BAD_VALUE', `${at} is not a run table`)
      if (table.length > 2 * maxRuns) throw new WireError('TOO_LARGE', `${at} has more than ${maxRuns} runs`)
      if (table.length % 2 !== 0) throw new WireError('BAD_RUNS', `${at} ends inside a pair`)
      let end = 0
      let total = 0
      for (let i = 0; i < table.length; i += 2) {
        const first = table[i]
        const nrPages = table[i + 1]
        if (!Number.isInteger(first) || !Number.isInteger(nrPages) || nrPages < 1) {
          throw new WireError('BAD_RUNS', `${at} has a run of ${nrPages} pages at page ${first}`)
        }
        if (first < end) throw new WireError('BAD_RUNS', `${at} is unordered or overlaps at page ${first}`)
        end = first + nrPages
        if (end > pageLimit) {
          throw new WireError('BAD_RUNS', `${at} leaves the address space at page ${first}`)
        }
        total += nrPages
      }
      if (total > maxPages) {
        throw new WireError('TOO_LARGE', `${at} has ${total} pages, at most ${maxPages} are allowed`)
      }
    },
    toWire: same,
  }
}

/** A message inside a frame. */
export function message<const S extends Fields>(fields: S): Field<ValuesOf<S>> {
  return {
    fromWire: (raw) => fromWire(fields, raw as Record<string, unknown> | null) as ValuesOf<S>,
    check(value, at) {
      if (typeof value !== 'object' || value === null) throw new WireError('BAD_VALUE', `${at} is missing`)
      check(fields, value, at)
    },
    toWire: (value) => toWire(fields, value),
  }
}

export function fromWire(
  fields: Fields,
  raw: Record<string, unknown> | null,
): Record<string, unknown> | null {
  if (raw === null) return null
  const value: Record<string, unknown> = {}
  for (const name in fields) value[name] = fields[name].fromWire(raw[name])
  return value
}

export function check(fields: Fields, value: object, at: string): void {
  for (const name in fields) fields[name].check((value as Record<string, unknown>)[name], `${at}.${name}`)
}

export function toWire(fields: Fields, value: object): Record<string, unknown> {
  const raw: Record<string, unknown> = {}
  for (const name in fields) raw[name] = fields[name].toWire((value as Record<string, unknown>)[name])
  return raw
}
