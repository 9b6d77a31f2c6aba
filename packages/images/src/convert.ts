// Converts between plain messages (bigint) and protobufjs messages (Long). protobufjs silently writes a BigInt as 0 and
// a missing required number as 0, and cuts a number that is too large. So everything is checked against the schema,
// field by field, before its encoder sees it. A field that the schema does not know is a mistake of the caller.

import { PageferryError } from '@pageferry/base'
import Long from 'long'
import { type SchemaField, schema } from '#generated/schema'

type Plain = Record<string, unknown>

const integerRange = {
  uint32: [0, 2 ** 32 - 1],
  int32: [-(2 ** 31), 2 ** 31 - 1],
  sint32: [-(2 ** 31), 2 ** 31 - 1],
} as const
const uint64Max = (1n << 64n) - 1n
const sint64Min = -(1n << 63n)
const sint64Max = (1n << 63n) - 1n

const fieldNames = new Map(
  Object.entries(schema).map(([message, fields]) => [message, new Set(fields.map((field) => field.name))]),
)

/**
 * Converts a plain message for the generated encoder. A 64-bit field may be a bigint or a safe integer. Throws INTERNAL
 * for anything that the format could not give back: a wrong type, a value out of range, a missing required field, an
 * unknown field, text that is not Unicode.
 */
export function toProtobuf(messageName: string, message: unknown): Plain {
  if (typeof message !== 'object' || message === null) throw misfit(messageName, message, 'a message')
  const known = fieldNames.get(messageName)
  for (const name of Object.keys(message)) {
    if (!known?.has(name)) throw misfit(`${messageName}.${name}`, undefined, 'a field of the message')
  }
  const out: Plain = {}
  for (const field of schema[messageName]) {
    const value = (message as Plain)[field.name]
    const path = `${messageName}.${field.name}`
    if (value === undefined) {
      if (field.rule === 'required') throw misfit(path, value, 'given: it is required')
    } else if (field.rule === 'repeated') {
      if (!Array.isArray(value)) throw misfit(path, value, 'an array')
      out[field.name] = Array.from(value, (element) => toScalar(path, field, element))
    } else {
      out[field.name] = toScalar(path, field, value)
    }
  }
  return out
}

/** Converts a decoded message to a plain one. Absent optional fields are absent; repeated ones are arrays. */
export function fromProtobuf(messageName: string, message: object): Plain {
  const out: Plain = {}
  for (const field of schema[messageName]) {
    const value = (message as Plain)[field.name]
    if (field.rule === 'repeated') {
      out[field.name] = (value as unknown[]).map((element) => fromScalar(field, element))
    } else if (Object.hasOwn(message, field.name)) {
      out[field.name] = fromScalar(field, value)
    }
  }
  return out
}

function toScalar(path: string, field: SchemaField, value: unknown): unknown {
  switch (field.type) {
    case 'uint32':
    case 'int32':
    case 'sint32': {
      const [min, max] = integerRange[field.type]
      if (!Number.isInteger(value) || (value as number) < min || (value as number) > max) {
        throw misfit(path, value, `an integer from ${min} to ${max}`)
      }
      return value
    }
    case 'uint64':
      return toLong(path, value, 0n, uint64Max)
    case 'sint64':
      return toLong(path, value, sint64Min, sint64Max)
    case 'bool':
      if (typeof value !== 'boolean') throw misfit(path, value, 'a boolean')
      return value
    case 'string':
      // Decoding leaves U+FFFD where bytes were not UTF-8: the name would become another one.
      if (typeof value !== 'string' || /\uFFFD|\p{Surrogate}/u.test(value))
        throw misfit(path, value, 'Unicode text')
      return value
    case 'bytes':
      if (!(value instanceof Uint8Array)) throw misfit(path, value, 'a Uint8Array')
      return value
    case 'enum':
      if (!field.values?.includes(value as number))
        throw misfit(path, value, `one of ${field.values?.join(', ')}`)
      return value
    case 'message':
      return toProtobuf(field.message as string, value)
  }
}

function toLong(path: string, value: unknown, min: bigint, max: bigint): Long {
  const wide = typeof value === 'number' && Number.isSafeInteger(value) ? BigInt(value) : value
  if (typeof wide !== 'bigint' || wide < min || wide > max) {
    throw misfit(path, value, `a bigint or safe integer from ${min} to ${max}`)
  }
  return Long.fromBits(Number(BigInt.asIntN(32, wide)), Number(BigInt.asIntN(32, wide >> 32n)), min === 0n)
}

function fromScalar(field: SchemaField, value: unknown): unknown {
  switch (field.type) {
    case 'uint64':
    case 'sint64':
      return fromLong(value as Long)
    case 'bytes':
      // Copy: the decoder returns a view that would keep the whole received frame alive.
      return new Uint8Array(value as Uint8Array)
    case 'message':
      return fromProtobuf(field.message as string, value as object)
    default:
      return value
  }
}

function fromLong(value: Long): bigint {
  const bits = (BigInt(value.high) << 32n) | BigInt(value.low >>> 0)
  return value.unsigned ? BigInt.asUintN(64, bits) : bits
}

function misfit(path: string, value: unknown, expected: string): PageferryError {
  const got =
    typeof value === 'object' && value !== null ? value.constructor?.name : String(value).slice(0, 64)
  return new PageferryError('INTERNAL', `image field ${path} must be ${expected}, not ${got}`, {
    details: { path },
  })
}
