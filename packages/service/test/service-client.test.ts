import { once } from 'node:events'
import { createServer, type RequestListener } from 'node:http'
import { type AddressInfo, createServer as createTcpServer } from 'node:net'
import { RemoteError } from '@pageferry/base'
import t, { type Test } from 'tap'
import { formatEvent } from '../src/client/event-stream.js'
import { ServiceClient } from '../src/client/service-client.js'
import { command, spawnService, startService, temporaryDir, untilState } from './fixtures/harness.js'

async function fakeServer(t: Test, answer: RequestListener): Promise<string> {
  const server = createServer(answer).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.close()
    server.closeAllConnections()
  })
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

async function unusedPort(): Promise<number> {
  const server = createTcpServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}

t.test('what is no URL of a service', async (t) => {
  for (const url of [
    '',
    'dump',
    '127.0.0.1:7421',
    'https://a:1',
    'ws://a:1',
    'http://a:1/path',
    'http://a:1?x=1',
  ]) {
    t.throws(() => new ServiceClient(url, 'source'), {
      code: 'BAD_REQUEST',
      message: `${url} is not the URL of a dump-service: expected http://HOST:PORT`,
    })
  }
  await t.rejects(new ServiceClient('http://127.0.0.1:6000', 'source').health(), {
    code: 'BAD_REQUEST',
    message:
      'fetch never connects to the port of http://127.0.0.1:6000: choose another one for the dump-service',
  })
  t.equal(new ServiceClient('http://[::1]:5/', 'source').url, 'http://[::1]:5')
})

t.test('nothing answers', async (t) => {
  const url = `http://127.0.0.1:${await unusedPort()}`
  const source = new ServiceClient(url, 'source')
  const expected = {
    name: 'PageferryError',
    code: 'PEER_UNREACHABLE',
    message: `nothing answers at ${url}: is the dump-service running there?`,
  }
  await t.rejects(source.health(), expected)
  await t.rejects(source.createMigration({ pid: 1, mode: 'hybrid' }), expected)
  await t.rejects(
    source.followEvents('0123456789abcdef').next(),
    expected,
    'no patience before the first contact',
  )
  await t.rejects(new ServiceClient(url, 'destination').list(), {
    message: /is the restore-service running there/,
  })
  await t.rejects(new ServiceClient('http://no-such-host.invalid:7421', 'source').health(), {
    code: 'PEER_UNREACHABLE',
    message:
      /^the host of http:\/\/no-such-host.invalid:7421 (is not known|cannot be looked up at the moment)$/,
  })
})

t.test('something else answers', async (t) => {
  const html = await fakeServer(t, (_, response) => response.writeHead(404).end('<h1>nginx</h1>'))
  await t.rejects(new ServiceClient(html, 'source').health(), {
    code: 'PROTOCOL',
    message: `${html} does not answer like a dump-service (HTTP status 404)`,
  })
  const ok = await fakeServer(t, (_, response) => response.end('hello'))
  await t.rejects(new ServiceClient(ok, 'source').list(), { code: 'PROTOCOL', message: /HTTP status 200/ })
  const events = await fakeServer(t, (_, response) => response.end('event: status\ndata: {oops\n\n'))
  await t.rejects(new ServiceClient(events, 'source').followEvents('0123456789abcdef').next(), {
    code: 'PROTOCOL',
  })
  const rude = createTcpServer((socket) => socket.end('SSH-2.0-x\r\n')).listen(0, '127.0.0.1')
  await once(rude, 'listening')
  t.teardown(() => rude.close())
  const url = `http://127.0.0.1:${(rude.address() as AddressInfo).port}`
  await t.rejects(new ServiceClient(url, 'source').health(), {
    code: 'PEER_UNREACHABLE',
    message: `what listens at ${url} does not speak HTTP`,
  })
})

t.test('something that accepts and stays silent, or breaks off', async (t) => {
  const silent = await fakeServer(t, () => {})
  await t.rejects(new ServiceClient(silent, 'source', { timeoutMs: 200 }).health(), {
    code: 'PEER_UNREACHABLE',
    message: `${silent} does not answer in time`,
  })
  const broken = await fakeServer(t, (request) => request.socket.destroy())
  await t.rejects(new ServiceClient(broken, 'source').health(), {
    message: `the connection to ${broken} broke`,
  })
})

t.test('the wrong one of the two services', async (t) => {
  const { service } = await startService(t, 'destination', temporaryDir(t))
  await t.rejects(new ServiceClient(service.url, 'source').health(), {
    code: 'BAD_REQUEST',
    message: `${service.url} is a restore-service, not a dump-service`,
  })
})

t.test('an error of the service names the side it comes from', async (t) => {
  const { client } = await startService(t, 'source', temporaryDir(t))
  const error = await client.get('0123456789abcdef').catch((error: unknown) => error)
  t.ok(error instanceof RemoteError)
  t.match(error, { role: 'source', code: 'NOT_FOUND', message: /^source: there is no migration/ })
})

t.test('following survives a restart of the service', async (t) => {
  const stateDir = temporaryDir(t)
  const before = await spawnService(t, 'source', stateDir)
  const { id } = await before.client.createMigration({ pid: 1, mode: 'hybrid' })
  command(stateDir, id, 'commit')
  await untilState(before.client, id, 'committed')

  // The first service's port is not free to choose, so a relay in front of both plays the fixed port.
  let upstream = before.client.url
  const url = await fakeServer(t, (request, response) => {
    fetch(upstream + request.url)
      .then(
        async ({ body }) => {
          for await (const chunk of body as AsyncIterable<Uint8Array>) response.write(chunk)
          response.end()
        },
        () => response.destroy(),
      )
      .catch(() => response.destroy())
  })
  const states: string[] = []
  for await (const { state } of new ServiceClient(url, 'source').followEvents(id)) {
    if (states[states.length - 1] !== state) states.push(state)
    if (state === 'committed' && upstream === before.client.url) {
      before.process.kill('SIGKILL')
      await once(before.process, 'exit')
      upstream = (await startService(t, 'source', stateDir)).service.url
    } else if (state === 'resumed') {
      command(stateDir, id, 'finish')
    }
  }
  t.same(states, ['committed', 'resumed', 'finished'])
})

t.test('patience ends, and abort is no error', async (t) => {
  const status = { id: '0123456789abcdef', role: 'source', state: 'precopy', workload: null, createdAt: '' }
  let answered = 0
  const url = await fakeServer(t, (request, response) => {
    if (answered++ > 0) request.socket.destroy()
    else response.end(formatEvent('status', status))
  })
  const follow = new ServiceClient(url, 'source').followEvents(status.id, { patienceMs: 300 })
  t.match((await follow.next()).value, status)
  await t.rejects(follow.next(), { code: 'PEER_UNREACHABLE', message: `the connection to ${url} broke` })
  t.ok(answered > 1, 'it was tried again')

  const open = await fakeServer(t, (_, response) => response.write(formatEvent('status', status)))
  const abort = new AbortController()
  const seen: string[] = []
  for await (const { state } of new ServiceClient(open, 'source').followEvents(status.id, {
    signal: abort.signal,
  })) {
    seen.push(state)
    setTimeout(() => abort.abort(), 50)
  }
  t.same(seen, ['precopy'])
})
