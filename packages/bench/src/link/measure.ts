/** Program: the receiving end of the link measurement, `measure.js LinkPlan-as-JSON`; prints a LinkMeasurement. */
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { WebSocket } from 'ws'
import { encode, fromSamples } from '../histogram.js'
import { encodeRequest, type LinkMeasurement, type LinkPlan, smallBytes, type Transport } from './protocol.js'

const plan: LinkPlan = JSON.parse(process.argv[2] ?? '')
const { address, ports, roundTrips, warmUpRoundTrips, throughputBytes, throughputRounds } = plan

const messageSizes = [256 * 1024, 1024 * 1024]
const connectTimeoutMs = 10_000
/** The size of Node's own reads. */
const readBytes = 64 * 1024

interface Connection {
  send(bytes: Buffer): void
  close(): void
}

/** Opens a connection that gets messages of one size and calls back for each. Waits for the server to come up. */
async function open(transport: Transport, messageBytes: number, onMessage: () => void): Promise<Connection> {
  for (const deadline = Date.now() + connectTimeoutMs; ; await sleep(50)) {
    try {
      return transport === 'tcp' ? await openTcp(messageBytes, onMessage) : await openWs(onMessage)
    } catch (error) {
      if (Date.now() > deadline) throw error
    }
  }
}

/**
 * Reads into one small buffer, which stays in the processor's cache: a reader that keeps the data can only be slower.
 * With 'data' events each read would get new memory instead, and its page faults would be measured here.
 */
async function openTcp(messageBytes: number, onMessage: () => void): Promise<Connection> {
  let got = 0
  const callback = (nr: number): boolean => {
    for (got += nr; got >= messageBytes; got -= messageBytes) onMessage()
    return true
  }
  const onread = { buffer: Buffer.alloc(readBytes), callback }
  const socket: Socket = connect({ port: ports.tcp, host: address, noDelay: true, onread })
  await once(socket, 'connect')
  return { send: (bytes) => socket.write(bytes), close: () => socket.destroy() }
}

async function openWs(onMessage: () => void): Promise<Connection> {
  const socket = new WebSocket(`ws://${address}:${ports.ws}`, { perMessageDeflate: false })
  await once(socket, 'open')
  socket.on('message', onMessage)
  return { send: (bytes) => socket.send(bytes), close: () => socket.terminate() }
}

async function roundTrip(transport: Transport): Promise<string> {
  const samples: number[] = []
  const message = Buffer.alloc(smallBytes, 1)
  let start = 0
  let done: () => void = () => {}
  const finished = new Promise<void>((resolve) => {
    done = resolve
  })
  const ping = (): void => {
    start = performance.now()
    connection.send(message)
  }
  const connection = await open(transport, smallBytes, () => {
    samples.push((performance.now() - start) * 1e6)
    if (samples.length === warmUpRoundTrips + roundTrips) done()
    else ping()
  })
  connection.send(encodeRequest({ messageBytes: smallBytes, count: 0 }))
  ping()
  await finished
  connection.close()
  return encode(fromSamples(samples.slice(warmUpRoundTrips)))
}

/** Gigabytes (10^9) per second, from the request to the last byte. */
async function throughput(transport: Transport, messageBytes: number, totalBytes: number): Promise<number> {
  const count = Math.ceil(totalBytes / messageBytes)
  let left = count
  let done: () => void = () => {}
  const finished = new Promise<void>((resolve) => {
    done = resolve
  })
  const connection = await open(transport, messageBytes, () => {
    if (--left === 0) done()
  })
  const start = performance.now()
  connection.send(encodeRequest({ messageBytes, count }))
  await finished
  const seconds = (performance.now() - start) / 1000
  connection.close()
  return (count * messageBytes) / 1e9 / seconds
}

/**
 * The transports take turns. Slow warm-up (memory that is new to a process, V8) and other load of the machine then
 * affect both alike, and they can be compared.
 */
async function measure(): Promise<LinkMeasurement> {
  const result: LinkMeasurement = {
    tcp: { roundTrip: await roundTrip('tcp'), throughput: [] },
    ws: { roundTrip: await roundTrip('ws'), throughput: [] },
  }
  const transports = ['tcp', 'ws'] as const
  for (const messageBytes of messageSizes) {
    const rates: Record<Transport, number[]> = { tcp: [], ws: [] }
    for (const transport of transports) await throughput(transport, messageBytes, throughputBytes)
    for (let round = 0; round < throughputRounds; round++) {
      for (const transport of transports) {
        rates[transport].push(await throughput(transport, messageBytes, throughputBytes))
      }
    }
    for (const transport of transports) {
      result[transport].throughput.push({ messageBytes, gigabytesPerS: rates[transport] })
    }
  }
  return result
}

const result = await measure()
process.stdout.write(`${JSON.stringify(result)}\n`)
process.exit()
