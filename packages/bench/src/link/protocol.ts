/**
 * The protocol between the two ends of the link measurement. A connection begins with one request. Then the server
 * sends `count` messages of `messageBytes`; if count is 0, it returns everything that it receives.
 */
export interface LinkRequest {
  messageBytes: number
  count: number
}

export const linkPorts = { tcp: 7401, ws: 7402 } as const
export type Transport = keyof typeof linkPorts

export const requestBytes = 8

export function encodeRequest({ messageBytes, count }: LinkRequest): Buffer {
  const bytes = Buffer.alloc(requestBytes)
  bytes.writeUInt32LE(messageBytes, 0)
  bytes.writeUInt32LE(count, 4)
  return bytes
}

export function decodeRequest(bytes: Buffer): LinkRequest {
  return { messageBytes: bytes.readUInt32LE(0), count: bytes.readUInt32LE(4) }
}

/** Amount of data to measure: less on a slow link. */
export interface LinkPlan {
  address: string
  ports: Record<Transport, number>
  roundTrips: number
  /** Round trips that V8 and the caches need to warm up. */
  warmUpRoundTrips: number
  throughputBytes: number
  throughputRounds: number
}

/** Bytes that a bulk lane has in flight before it waits for the destination. */
export const windowBytes = 4 * 1024 * 1024

/** Size of a small message of the fault lane. */
export const smallBytes = 64

/** Output of the measuring end. */
export type LinkMeasurement = Record<
  Transport,
  {
    /** HdrHistogram V2 of nanoseconds, base64. */
    roundTrip: string
    throughput: { messageBytes: number; gigabytesPerS: number[] }[]
  }
>
