import { closeSync, openSync, readSync, writeSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { isAlive, kill, startOrphan } from '@pageferry/testing/processes'
import t from 'tap'
import { fds, Poller, uffd } from '../src/index.js'

function pair(): [number, number] {
  const [a, b] = fds.pipe2(0o2000000)
  return [a, b]
}

t.test('calls back while there is something to read, and not when paused or closed', async (t) => {
  const [reader, writer] = pair()
  let calls = 0
  const byte = new Uint8Array(1)
  const poller = new Poller(reader, (readable, error) => {
    t.equal(readable, true)
    t.equal(error, undefined)
    calls++
    readSync(reader, byte)
  })
  await sleep(20)
  t.equal(calls, 0)
  writeSync(writer, 'abc')
  await sleep(20)
  t.equal(calls, 3, 'level-triggered')
  poller.pause()
  writeSync(writer, 'd')
  await sleep(20)
  t.equal(calls, 3)
  poller.resume()
  await sleep(20)
  t.equal(calls, 4)
  t.throws(() => new Poller(reader, () => {}), { code: 'EEXIST', syscall: 'uv_poll_init' })
  writeSync(writer, 'e')
  poller.close()
  poller.close()
  poller.resume()
  await sleep(20)
  t.equal(calls, 4)
  closeSync(reader)
  closeSync(writer)
})

t.test('a hang-up is readable; closing inside of the callback is fine; promises run after it', async (t) => {
  const [reader, writer] = pair()
  const order: string[] = []
  await new Promise<void>((resolve) => {
    const poller = new Poller(reader, (readable) => {
      queueMicrotask(() => {
        order.push('microtask')
        setImmediate(resolve)
      })
      order.push(readable ? 'readable' : 'not readable')
      poller.close()
      closeSync(reader)
    })
    closeSync(writer)
  })
  t.strictSame(order, ['readable', 'microtask'])
})

t.test('tells when a process ends', async (t) => {
  const { pid } = startOrphan('sleep', '1000')
  const pidfd = fds.pidfdOpen(pid)
  const ended = new Promise<void>((resolve) => {
    const poller = new Poller(pidfd, () => {
      poller.close()
      resolve()
    })
  })
  kill(pid)
  await ended
  t.notOk(isAlive(pid))
  closeSync(pidfd)
})

t.test('errors', async (t) => {
  const file = openSync('/proc/self/exe', 'r')
  t.throws(() => new Poller(file, () => {}), { code: 'EPERM' })
  closeSync(file)
  t.throws(() => new Poller(file, () => {}), { code: 'EBADF' })
  t.throws(() => new Poller(0, undefined as unknown as () => void), TypeError)

  // A userfaultfd without a negotiated API polls as an error.
  const fd = uffd.create(uffd.UFFD_USER_MODE_ONLY | 0o2000000)
  const error = await new Promise((resolve) => {
    const poller = new Poller(fd, (readable, error) => {
      t.equal(readable, false)
      poller.close()
      resolve(error)
    })
  })
  t.match(error, { code: 'EBADF', syscall: 'poll' })
  closeSync(fd)
})

t.test('an exception in the callback is an uncaught exception', async (t) => {
  const [reader, writer] = pair()
  const listeners = process.listeners('uncaughtException')
  process.removeAllListeners('uncaughtException')
  const caught = new Promise<Error>((resolve) => process.once('uncaughtException', resolve))
  const poller = new Poller(reader, () => {
    poller.close()
    throw new Error('from the callback')
  })
  writeSync(writer, 'x')
  const error = await caught
  for (const listener of listeners) process.on('uncaughtException', listener)
  t.equal(error.message, 'from the callback')
  closeSync(reader)
  closeSync(writer)
})

const workerSource = `
  import { workerData, parentPort } from 'node:worker_threads'
  const { Poller } = await import(workerData.module)
  globalThis.poller = new Poller(workerData.fd, (readable) => {
    globalThis.poller.pause()
    parentPort.postMessage(readable)
  })
  parentPort.postMessage('up')
`

t.test('works in worker threads, which may be terminated while it polls', async (t) => {
  // Compiled: a thread without the tests' loader.
  const module = new URL('../dist/src/index.js', import.meta.url).href
  for (let round = 0; round < 5; round++) {
    const [reader, writer] = pair()
    const url = new URL(`data:text/javascript,${encodeURIComponent(workerSource)}`)
    const worker = new Worker(url, { workerData: { module, fd: reader }, execArgv: [] })
    const messages: unknown[] = []
    await new Promise<void>((resolve, reject) => {
      worker.on('error', reject)
      worker.on('message', (message) => {
        messages.push(message)
        if (message === 'up') writeSync(writer, 'x')
        else resolve()
      })
    })
    t.strictSame(messages, ['up', true])
    await worker.terminate()
    closeSync(reader)
    closeSync(writer)
  }
})

t.test('a poller that nobody holds any more goes on', async (t) => {
  const [reader, writer] = pair()
  const called = new Promise<void>((resolve) => {
    // The only reference from outside is the one from its own callback.
    const poller = new Poller(reader, (readable) => {
      t.equal(readable, true)
      poller.close()
      resolve()
    })
  })
  globalThis.gc?.()
  await sleep(10)
  writeSync(writer, 'x')
  await called
  closeSync(reader)
  closeSync(writer)
})
