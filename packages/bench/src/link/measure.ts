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

interface Connection {
  send(bytes: Buffer): void
  close(): void
}

/** Opens a connection, whose bytes are counted by `onBytes`; waits for the server to come up. */
async function open(transport: Transport, onBytes: (nr: number) => void): Promise<Connection> {
  for (const deadline = Date.now() + connectTimeoutMs; ; await sleep(50)) {
    try {
      return transport === 'tcp' ? await openTcp(onBytes) : await openWs(onBytes)
    } catch (error) {
      if (Date.now() > deadline) throw error
    }
  }
}

async function openTcp(onBytes: (nr: number) => void): Promise<Connection> {
  const socket: Socket = connect({ port: ports.tcp, host: address, noDelay: true })
  await once(socket, 'connect')
  socket.on('data', (bytes) => onBytes(bytes.length))
  return { send: (bytes) => socket.write(bytes), close: () => socket.destroy() }
}

async function openWs(onBytes: (nr: number) => void): Promise<Connection> {
  const socket = new WebSocket(`ws://${address}:${ports.ws}`, { perMessageDeflate: false })
  await once(socket, 'open')
  socket.on('message', (bytes: Buffer) => onBytes(bytes.length))
  return { send: (bytes) => socket.send(bytes), close: () => socket.terminate() }
}

async function roundTrip(transport: Transport): Promise<string> {
  const samples: number[] = []
  const message = Buffer.alloc(smallBytes, 1)
  let start = 0
  let got = 0
  let done: () => void = () => {}
  const finished = new Promise<void>((resolve) => {
    done = resolve
  })
  const ping = (): void => {
    start = performance.now()
    connection.send(message)
  }
  const connection = await open(transport, (nr) => {
    got += nr
    if (got < smallBytes) return
    got = 0
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

/** Gigabytes (10^9) a second, from the request to the last byte. */
async function throughput(transport: Transport, messageBytes: number, totalBytes: number): Promise<number> {
  let got = 0
  let done: () => void = () => {}
  const finished = new Promise<void>((resolve) => {
    done = resolve
  })
  const connection = await open(transport, (nr) => {
    got += nr
    if (got >= totalBytes) done()
  })
  const start = performance.now()
  connection.send(encodeRequest({ messageBytes, count: Math.ceil(totalBytes / messageBytes) }))
  await finished
  const seconds = (performance.now() - start) / 1000
  connection.close()
  return totalBytes / 1e9 / seconds
}

async function measure(transport: Transport): Promise<LinkMeasurement[Transport]> {
  const result: LinkMeasurement[Transport] = { roundTrip: await roundTrip(transport), throughput: [] }
  for (const messageBytes of messageSizes) {
    await throughput(transport, messageBytes, throughputBytes / 4)
    const gigabytesPerS: number[] = []
    for (let round = 0; round < throughputRounds; round++) {
      gigabytesPerS.push(await throughput(transport, messageBytes, throughputBytes))
    }
    result.throughput.push({ messageBytes, gigabytesPerS })
  }
  return result
}

const result: LinkMeasurement = { tcp: await measure('tcp'), ws: await measure('ws') }
process.stdout.write(`${JSON.stringify(result)}\n`)
process.exit()
