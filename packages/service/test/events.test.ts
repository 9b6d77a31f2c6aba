import { once } from 'node:events'
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { eventually } from '@pageferry/testing/eventually'
import t from 'tap'
import type { Status } from '../src/api/schemas.js'
import { EventParser } from '../src/client/event-stream.js'
import { command, startService, temporaryDir, untilState } from './fixtures/harness.js'

const request = { pid: 4242, mode: 'hybrid' } as const

t.test('every status until the last one, which ends the stream', async (t) => {
  const stateDir = temporaryDir(t)
  const { client } = await startService(t, 'source', stateDir)
  const { id } = await client.createMigration(request)
  await untilState(client, id, 'preparing')
  const states: string[] = []
  for await (const status of client.followEvents(id)) {
    states.push(status.state)
    if (status.state === 'preparing') command(stateDir, id, 'commit')
    if (status.state === 'committed') command(stateDir, id, 'finish')
  }
  t.same(states, ['preparing', 'committed', 'finished'])
  states.length = 0
  for await (const { state } of client.followEvents(id)) states.push(state)
  t.same(states, ['finished'], 'of an ended migration: only its last')
})

/** A client that reads nothing until told to: the bytes of one GET over a plain socket. */
async function openStream(port: number, id: string) {
  const socket = connect(port, '127.0.0.1')
  await once(socket, 'connect')
  socket.pause()
  socket.write(`GET /v1/migrations/${id}/events HTTP/1.0\r\nhost: 127.0.0.1\r\n\r\n`)
  return socket
}

t.test('a client that does not read gets the newest status, not all of them', async (t) => {
  const stateDir = temporaryDir(t)
  const { service, client } = await startService(t, 'source', stateDir)
  const { id } = await client.createMigration(request)
  await untilState(client, id, 'preparing')
  const socket = await openStream(service.port, id)
  await sleep(100)
  const memoryBefore = process.memoryUsage().rss
  command(stateDir, id, 'burst')
  await eventually('the last status of the burst', async () => (await client.get(id)).report?.i === 400)
  command(stateDir, id, 'finish')
  await untilState(client, id, 'finished')
  t.comment(`rss grew by ${Math.round((process.memoryUsage().rss - memoryBefore) / 1024)} KiB`)

  const parser = new EventParser()
  const statuses: Status[] = []
  let head = ''
  socket.setEncoding('utf8')
  socket.on('data', (text: string) => {
    if (head.includes('\r\n\r\n')) {
      statuses.push(...parser.push(text).map(({ data }) => JSON.parse(data) as Status))
      return
    }
    head += text
    const end = head.indexOf('\r\n\r\n')
    if (end === -1) return
    statuses.push(...parser.push(head.slice(end + 4)).map(({ data }) => JSON.parse(data) as Status))
  })
  socket.resume()
  await once(socket, 'end')
  t.match(head, /200 OK.*text\/event-stream/s)
  t.equal(statuses[0].state, 'preparing')
  t.equal(statuses[statuses.length - 1].state, 'finished', 'the last one always arrives')
  t.ok(statuses.length < 400, `${statuses.length} of 402 statuses were sent`)
  const order = statuses.flatMap(({ state, report }) => (state === 'precopy' ? [report?.i as number] : []))
  t.same(
    order,
    [...order].sort((a, b) => a - b),
  )
})

t.test('heartbeats while nothing happens; a stalled client is dropped', async (t) => {
  const stateDir = temporaryDir(t)
  const limits = { heartbeatMs: 30, stalledClientMs: 200 }
  const { service, client } = await startService(t, 'source', stateDir, limits)
  const { id } = await client.createMigration(request)
  const idle = await openStream(service.port, id)
  let text = ''
  idle.on('data', (chunk) => (text += chunk))
  idle.resume()
  await eventually('three heartbeats', () => text.split(': heartbeat\n\n').length > 3)

  const stalled = await openStream(service.port, id)
  const closed = new Promise((resolve) => stalled.on('close', resolve))
  stalled.on('error', () => {})
  command(stateDir, id, 'burst')
  await sleep(1500)
  stalled.resume()
  await closed
  t.notMatch(text, /"finished"/, 'the migration still runs')
  idle.destroy()
})

t.test('so many streams at once', async (t) => {
  const stateDir = temporaryDir(t)
  const { service, client } = await startService(t, 'source', stateDir, { maxEventClients: 1 })
  const { id } = await client.createMigration(request)
  const first = client.followEvents(id)
  await first.next()
  await t.rejects(client.followEvents(id).next(), {
    code: 'REFUSED',
    message: /1 event streams are open already/,
  })
  await first.return()
  await eventually('the place is free again', async () => {
    const response = await fetch(`${service.url}/v1/migrations/${id}/events`)
    await response.body?.cancel()
    return response.status === 200
  })
})
