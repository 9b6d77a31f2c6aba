import { PageferryError } from '@pageferry/base'

/** Values in an AttributeEntry: a number as 8 bytes, little-endian; a bit set as it is. */

export function fromNumber(value: bigint): Uint8Array {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(BigInt.asUintN(64, value))
  return bytes
}

/** The caller converts signed numbers. */
export function toNumber(bytes: Uint8Array): bigint {
  if (bytes.length !== 8) throw new PageferryError('PROTOCOL', 'an attribute is not a number of 8 bytes')
  return Buffer.from(bytes).readBigUInt64LE(0)
}
