/**
 * Payload of PageHashes: one u64 little-endian per page of the runs. x86_64 is little-endian, so the array already is
 * the payload.
 */
export function hashesToPayload(hashes: BigUint64Array): Uint8Array {
  return new Uint8Array(hashes.buffer, hashes.byteOffset, hashes.byteLength)
}

/** The hashes in a payload. They are copied: headers vary in length, so the payload may have any alignment. */
export function payloadToHashes(payload: Uint8Array): BigUint64Array {
  const copy = Uint8Array.from(payload)
  return new BigUint64Array(copy.buffer, 0, copy.length / BigUint64Array.BYTES_PER_ELEMENT)
}
