import { pageBytes } from '@pageferry/base'
import { memory } from '@pageferry/kernel'
import { PageSet } from '@pageferry/pages'
import { type FrameOf, hashRequestsMax, payloadToHashes } from '@pageferry/wire'
import t from 'tap'
import { HashServer } from '../src/verify/hash-server.js'
import { contentOf, pagesOf, startPages } from './fixtures/workload.js'

t.test('hashes of the frozen original', async (t) => {
  const workload = await startPages(t, 2100)
  const { pid, memFd, first } = workload
  const answers: { frame: FrameOf<'pageHashes'>; hashes: BigUint64Array }[] = []
  const taken: (() => void)[] = []
  const server = new HashServer({
    ...{ pid, memFd, asId: 1, known: PageSet.of([first, 1500], [first + 2000, 10]) },
    send: (frame, payload, done) => {
      if (frame.type !== 'pageHashes') throw new Error(frame.type)
      answers.push({ frame, hashes: payloadToHashes(payload) })
      taken.push(done)
    },
  })
  const ask = (...runs: number[]): void =>
    server.onRequest({ type: 'hashRequest', asId: 1, runs: Float64Array.from(runs) })

  await t.test('are of the memory itself, zeros too', async (t) => {
    ask(first, 1000)
    ask(first + 1000, 500, first + 2000, 10)
    const page = new BigUint64Array(pageBytes / 8)
    const hash = new BigUint64Array(1)
    let checked = 0
    for (const { frame, hashes } of answers) {
      for (const [i, each] of [...pagesOf(frame.runs)].entries()) {
        memory.hashPages(new Uint8Array(page.fill(contentOf(each - first)).buffer), 1, hash)
        if (hash[0] !== hashes[i]) t.fail(`page ${each - first}`)
        checked++
      }
    }
    t.equal(checked, 1510)
  })

  await t.test('only of pages that are moved', async (t) => {
    const before = answers.length
    t.throws(() => ask(first + 1499, 2), {
      name: 'WireError',
      message: /has no contents in the final pagemap/,
    })
    t.throws(() => ask(0, 1), { message: /has no contents/ })
    t.throws(() => server.onRequest({ type: 'hashRequest', asId: 2, runs: Float64Array.of(first, 1) }), {
      message: /address space 2 is unknown/,
    })
    t.equal(answers.length, before)
  })

  await t.test('only for a peer that takes the answers', async (t) => {
    for (const done of taken.splice(0)) done()
    for (let i = 0; i < hashRequestsMax; i++) ask(first, 1)
    t.throws(() => ask(first, 1), { name: 'WireError', message: /more than 4 HashRequests/ })
    taken[0]()
    ask(first, 1)
  })
})
