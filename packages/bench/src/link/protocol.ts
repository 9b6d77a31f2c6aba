/**
 * What the two ends of the link measurement have agreed on. A connection begins with one request; then the server
 * sends `count` messages of `messageBytes`, or, if count is 0, sends everything back that it gets.
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

/** How much is measured: less on a slow link. */
export interface LinkPlan {
  address: string
  ports: Record<Transport, number>
  roundTrips: number
  /** Until then V8 and the caches get to know the path. */
  warmUpRoundTrips: number
  throughputBytes: number
  throughputRounds: number
}

/** As much as a bulk lane has on its way before it waits for the destination. */
export const windowBytes = 4 * 1024 * 1024

/** What a small message of the fault lane takes. */
export const smallBytes = 64

/** What the measuring end prints. */
export type LinkMeasurement = Record<
  Transport,
  {
    /** HdrHistogram V2 of nanoseconds, base64. */
    roundTrip: string
    throughput: { messageBytes: number; gigabytesPerS: number[] }[]
  }
>
