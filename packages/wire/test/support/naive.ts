import { readFileSync } from 'node:fs'
import protobuf from 'protobufjs'
import type { Frame } from '../../src/index.js'

const path = new URL('../../../../proto/wire/frames.proto', import.meta.url)

/** The protocol as written, read at run time: nothing here passes through the generated code. */
export const root = protobuf.parse(readFileSync(path, 'utf8')).root.resolveAll()
export const frameType = root.lookupType('pageferry.wire.Frame')

/** Encodes a frame slowly and literally, byte by byte from the protobuf encoding page; takes only numbers from the .proto. */
export function naiveEncode(frame: Frame, payload: Uint8Array): Buffer {
  const { type, ...fields } = frame
  const body = frameType.fields[type]
  const header = delimited(body.id, naiveMessage(body.resolvedType as protobuf.Type, fields))
  const length = [0, 8, 16, 24].map((shift) => (header.length >>> shift) & 0xff)
  return Buffer.from([...length, ...header, ...payload])
}

function naiveMessage(type: protobuf.Type, values: Record<string, unknown>): number[] {
  const fields = Object.values(type.fields).sort((a, b) => a.id - b.id)
  return fields.flatMap((field) => naiveField(field, values[field.name]))
}

function naiveField(field: protobuf.Field, value: unknown): number[] {
  if (!field.repeated) return naiveValue(field, value, false)
  const items = [...(value as Iterable<unknown>)]
  if (items.length === 0) return []
  if (field.type === 'string' || field.resolvedType)
    return items.flatMap((item) => naiveValue(field, item, true))
  return delimited(
    field.id,
    items.flatMap((item) => varint(BigInt(item as number))),
  )
}

function naiveValue(field: protobuf.Field, value: unknown, always: boolean): number[] {
  if (field.resolvedType instanceof protobuf.Type) {
    return delimited(field.id, naiveMessage(field.resolvedType, value as Record<string, unknown>))
  }
  if (field.resolvedType) {
    return [
      ...varint(tag(field.id, 0)),
      ...varint(BigInt(field.resolvedType.values[`LANE_${String(value).toUpperCase()}`])),
    ]
  }
  if (!always && (value === 0 || value === 0n || value === false || value === '')) return []
  switch (field.type) {
    case 'string':
      return delimited(field.id, [...Buffer.from(value as string)])
    case 'bytes':
      return (value as Uint8Array).length === 0 ? [] : delimited(field.id, [...(value as Uint8Array)])
    case 'double': {
      const bytes = Buffer.alloc(8)
      bytes.writeDoubleLE(value as number)
      return [...varint(tag(field.id, 1)), ...bytes]
    }
    default:
      return [...varint(tag(field.id, 0)), ...varint(BigInt(value as number))]
  }
}

function tag(id: number, wireType: number): bigint {
  return BigInt(id * 8 + wireType)
}

function delimited(id: number, bytes: number[]): number[] {
  return [...varint(tag(id, 2)), ...varint(BigInt(bytes.length)), ...bytes]
}

function varint(value: bigint): number[] {
  return value < 128n ? [Number(value)] : [Number(value & 127n) | 128, ...varint(value >> 7n)]
}
