import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { addressOf, PageferryError, pageBytes } from '@pageferry/base'
import type { Restorer } from '@pageferry/checkpoint'
import { memory } from '@pageferry/kernel'
import { AreaMap, PageSet } from '@pageferry/pages'
import { type Frame, hashesToPayload } from '@pageferry/wire'
import t, { type Test } from 'tap'
import { installRanges, PageInstaller } from '../src/rounds/installer.js'
import { HashLog, readHashLog } from '../src/verify/hash-log.js'
import { hashesOf, PageHasher, zeroHash } from '../src/verify/page-hasher.js'
import { Verifier } from '../src/verify/verifier.js'
import { area, base, createRestorer, pages, table } from './fixtures/skeleton.js'

const never = new AbortController().signal
const none = new Float64Array(0)

/** What the frozen original holds, by page. */
type Original = Map<number, bigint>

function originalOf(runs: Float64Array, data: Uint8Array): Original {
  const hashes = hashesOf(data)
  const original: Original = new Map()
  let at = 0
  for (let r = 0; r < runs.length; r += 2) {
    for (let i = 0; i < runs[r + 1]; i++) original.set(runs[r] + i, hashes[at++])
  }
  return original
}

/** A verifier and the source that it asks; `answers: false` for one that says nothing by itself. */
function setUp(t: Test, when: 'after-resume' | 'before-resume', original: Original, answers = true) {
  const directory = mkdtempSync(join(tmpdir(), 'pageferry-verifier-'))
  t.teardown(() => rmSync(directory, { recursive: true }))
  const logPath = join(directory, 'hashes')
  const asked: Float64Array[] = []
  const answer = (runs: Float64Array): void => {
    const hashes: bigint[] = []
    for (let r = 0; r < runs.length; r += 2) {
      for (let i = 0; i < runs[r + 1]; i++) hashes.push(original.get(runs[r] + i) ?? 0n)
    }
    verifier.answered({ type: 'pageHashes', asId: 1, runs }, hashesToPayload(BigUint64Array.from(hashes)))
  }
  const send = (frame: Frame): void => {
    if (frame.type !== 'hashRequest') throw new Error(frame.type)
    asked.push(frame.runs)
    if (answers) setImmediate(answer, frame.runs)
  }
  const options = { when, asId: 1, logPath, send }
  const verifier = new Verifier(options)
  verifier.createLog()
  return { verifier, options, logPath, asked, answer }
}

function flipBit(restorer: Restorer, at: number, byte: number, bit: number): void {
  const address = addressOf(base + at) + BigInt(byte)
  const value = Buffer.alloc(1)
  memory.pread(restorer.skeleton.memFd, address, value)
  value[0] ^= 1 << bit
  memory.pwrite(restorer.skeleton.memFd, address, value)
}

const address = (at: number): string => `0x${addressOf(base + at).toString(16)}`
const differ = (...at: number[]) => ({
  code: 'VERIFY_FAILED',
  details: { mismatches: at.length, unproven: 0, differing: at.map((each) => ({ address: address(each) })) },
})

t.test('pages of the skeleton', async (t) => {
  const restorer = await createRestorer(t)
  restorer.map.apply(new AreaMap([area(0, 3000, 'anon')]))
  const { memFd } = restorer.skeleton
  const many = Buffer.alloc(2500 * pageBytes)
  for (let i = 0; i < 2500; i++) many.writeUInt32LE(i + 1, i * pageBytes + (i % 1000) * 4)
  const installer = new PageInstaller(restorer.uffd, memFd, installRanges(restorer.map))
  installer.installBatch(table([0, 2500]), many, table([2600, 2]))
  const runs = table([0, 2500], [2600, 2])
  const should = Buffer.concat([many, pages(0, 0)])
  const sets = {
    parent: PageSet.of([base, 2500]),
    present: PageSet.of([base + 2600, 2]),
    lazy: PageSet.of([base + 2800, 10]),
  }
  const places: [at: number, byte: number, bit: number][] = [
    [0, 0, 0],
    [1023, pageBytes - 1, 7],
    [1024, 2048, 3],
    [2499, 1, 0],
    [2601, 4000, 5],
  ]

  /** As the thread of a bulk lane does behind its installing. */
  const readBack = (logPath: string): void => {
    const own = openSync(`/proc/${restorer.pid}/mem`, 'r')
    const log = HashLog.open(logPath)
    new PageHasher(restorer.pid, own, 256).forEachPiece(runs, (piece, hashes) =>
      log.append('round', piece, hashes),
    )
    log.close()
    closeSync(own)
  }

  await t.test('before the resume: are what the original holds', async (t) => {
    const { verifier } = setUp(t, 'before-resume', originalOf(runs, should))
    await verifier.checkSkeleton(restorer, sets, never)
    t.match(verifier.report, { pages: 2502, mismatches: 0, unproven: 0, differing: [] })
  })

  await t.test('before the resume: one flipped bit is found, wherever it is', async (t) => {
    for (const [at, byte, bit] of places) {
      flipBit(restorer, at, byte, bit)
      const { verifier } = setUp(t, 'before-resume', originalOf(runs, should))
      await t.rejects(verifier.checkSkeleton(restorer, sets, never), differ(at))
      flipBit(restorer, at, byte, bit)
    }
  })

  await t.test('after the resume: one flipped bit is found and named, wherever it is', async (t) => {
    for (const [at, byte, bit] of places) {
      flipBit(restorer, at, byte, bit)
      const { verifier, logPath, asked } = setUp(t, 'after-resume', originalOf(runs, should))
      readBack(logPath)
      verifier.checkAbsent(restorer, sets)
      await verifier.checkSkeleton(restorer, sets, never)
      t.same(asked, [], 'nothing is asked while the workload stands still')
      flipBit(restorer, at, byte, bit)
      await t.rejects(verifier.prove(never), differ(at))
      t.match(verifier.report, {
        ...{ pages: 2502, mismatches: 1, unproven: 0 },
        differing: [{ address: address(at), area: 'anon' }],
      })
    }
  })

  await t.test('two pages that were exchanged are found', async (t) => {
    const exchanged = Buffer.from(should)
    should.copy(exchanged, 0, pageBytes, 2 * pageBytes)
    should.copy(exchanged, pageBytes, 0, pageBytes)
    const { verifier } = setUp(t, 'before-resume', originalOf(runs, exchanged))
    await t.rejects(verifier.checkSkeleton(restorer, sets, never), differ(0, 1))
  })

  await t.test('a page that no thread has read back is unproven', async (t) => {
    const { verifier, logPath } = setUp(t, 'after-resume', originalOf(runs, should))
    const log = HashLog.open(logPath)
    log.append('round', table([0, 2500]), hashesOf(many))
    log.close()
    verifier.checkAbsent(restorer, sets)
    await t.rejects(verifier.prove(never), { code: 'VERIFY_FAILED', details: { mismatches: 0, unproven: 2 } })
  })

  await t.test('pages that are missing or should not be there are found before anything runs', async (t) => {
    installer.installBatch(table([2805, 1]), pages(1), table([2900, 2]))
    const more = { ...sets, parent: sets.parent.clone().union(PageSet.of([base + 2700, 1])) }
    const wrong = differ(2700, 2805, 2900, 2901)
    const after = setUp(t, 'after-resume', originalOf(runs, should))
    t.throws(() => after.verifier.checkAbsent(restorer, more), wrong)
    const before = setUp(t, 'before-resume', originalOf(runs, should))
    await t.rejects(before.verifier.checkSkeleton(restorer, more, never), wrong)
  })

  await t.test('the step that waits can be told to give up', async (t) => {
    const { verifier } = setUp(t, 'before-resume', originalOf(runs, should), false)
    const controller = new AbortController()
    const checking = verifier.checkSkeleton(restorer, sets, controller.signal)
    setImmediate(() => controller.abort(new Error('enough')))
    await t.rejects(checking, { message: 'enough' })
  })
})

t.test('lazy pages are compared with what came', async (t) => {
  const original = originalOf(table([0, 3], [10, 2]), pages(1, 2, 0, 4, 0))
  const good = setUp(t, 'after-resume', original)
  good.verifier.noteLazy(table([0, 2], [10, 1]), pages(1, 2, 4), table([2, 1], [11, 1]))
  good.verifier.noteLazy(table([0, 1]), pages(1), none)
  await good.verifier.prove(never)
  t.match(good.verifier.report, { pages: 5, mismatches: 0 }, 'a page that comes twice is one page')

  const bad = setUp(t, 'before-resume', original)
  const flipped = pages(4)
  flipped[17] ^= 0x10
  bad.verifier.noteLazy(table([0, 1], [10, 1]), Buffer.concat([pages(1), flipped]), table([1, 1]))
  bad.verifier.noteLazy(table([12, 1]), pages(0), none)
  await t.rejects(bad.verifier.prove(never), differ(1, 10, 12), 'the last one is no page of the process')
})

t.test('a page that came twice may have been installed as either', async (t) => {
  for (const copies of [
    [1, 9],
    [9, 1],
  ]) {
    const { verifier } = setUp(t, 'after-resume', originalOf(table([0, 1]), pages(1)))
    for (const copy of copies) verifier.noteLazy(table([0, 1]), pages(copy), none)
    await t.rejects(verifier.prove(never), differ(0))
  }
})

t.test('only the first few are named, and all are counted', async (t) => {
  const { verifier } = setUp(t, 'after-resume', new Map())
  verifier.noteLazy(none, new Uint8Array(0), table([0, 3000]))
  const error = await verifier.prove(never).catch((cause: PageferryError) => cause)
  t.match(error, { code: 'VERIFY_FAILED', details: { mismatches: 3000, differing: { length: 20 } } })
  t.match(String(error), new RegExp(`3000 pages .* differ from the original: ${address(0)}, .*, …`))
})

t.test('questions are asked again on a new lane, and not more at once than the source takes', async (t) => {
  const runs = table([0, 10_000])
  const { verifier, asked, answer } = setUp(t, 'after-resume', new Map(), false)
  verifier.noteLazy(none, new Uint8Array(0), runs)
  const proving = verifier.prove(never).catch((cause: PageferryError) => cause)
  await new Promise(setImmediate)
  t.equal(asked.length, 4)
  verifier.reconnected()
  t.same(asked.slice(4), asked.slice(0, 4))
  t.throws(() => answer(table([0, 1])), { name: 'WireError' }, 'an answer is to the oldest question')
  for (let i = 4; i < asked.length; i++) {
    answer(asked[i])
    await new Promise(setImmediate)
  }
  t.match(await proving, { details: { mismatches: 10_000 } })
})

t.test('an original that dies leaves the rest unproven', async (t) => {
  const { verifier, asked, answer } = setUp(
    t,
    'after-resume',
    originalOf(table([0, 1024]), Buffer.alloc(1024 * pageBytes)),
    false,
  )
  verifier.noteLazy(none, new Uint8Array(0), table([0, 3000]))
  const proving = verifier.prove(never).catch((cause: PageferryError) => cause)
  await new Promise(setImmediate)
  answer(asked[0])
  await new Promise(setImmediate)
  verifier.originalLost(new PageferryError('WORKLOAD_EXITED', 'the frozen original was killed'))
  t.match(await proving, {
    message: /1976 could not be compared \(the frozen original was killed\)/,
    details: { mismatches: 0, unproven: 1976 },
  })
  t.match(verifier.report, { pages: 1024, mismatches: 0, unproven: 1976 })
})

t.test('a successor goes on with what is on record', async (t) => {
  const original = originalOf(table([0, 2], [9000, 1], [20, 1]), pages(1, 2, 3, 5))
  const { verifier, options, logPath, answer } = setUp(t, 'after-resume', original)
  const log = HashLog.open(logPath)
  log.append('round', table([0, 2], [50, 1]), hashesOf(pages(1, 9, 7)))
  log.append('round', table([1, 1]), hashesOf(pages(2)))
  log.append('kept', table([0, 2]))
  log.close()
  verifier.noteLazy(table([9000, 1]), pages(3), none)
  // kill -9 in the middle of a record: its page was not installed yet.
  const whole = readFileSync(logPath).length
  verifier.noteLazy(table([20, 1]), pages(5), none)
  truncateSync(logPath, whole + 30)
  const send = (frame: Frame): void => {
    if (frame.type === 'hashRequest')
      setImmediate(() => {
        const hashes = [...frame.runs.keys()]
          .filter((i) => i % 2 === 0)
          .flatMap((i) =>
            Array.from({ length: frame.runs[i + 1] }, (_, j) => original.get(frame.runs[i] + j) ?? 0n),
          )
        successor.answered(
          { type: 'pageHashes', asId: 1, runs: frame.runs },
          hashesToPayload(BigUint64Array.from(hashes)),
        )
      })
  }
  const successor = new Verifier({ ...options, send }, { ...verifier.report, pages: 70, downtimeMs: 4 })
  await successor.prove(never)
  t.match(successor.report, { pages: 73, mismatches: 0, unproven: 0, downtimeMs: 4 })
  t.type(answer, 'function')

  successor.removeLog()
  await t.rejects(successor.prove(never), { code: 'VERIFY_FAILED', message: /are lost: ENOENT/ })
})

t.test('what is no record is noticed', async (t) => {
  const { logPath } = setUp(t, 'after-resume', new Map())
  const log = HashLog.open(logPath)
  t.ok(log.append('lazy', table([0, 1]), BigUint64Array.of(zeroHash)))
  log.close()
  t.equal(readHashLog(logPath).comparable.count, 1)
  writeFileSync(logPath, Buffer.alloc(48, 0xff), { flag: 'a' })
  t.throws(() => readHashLog(logPath), { code: 'INTERNAL' })
})

t.test('a disk that is full costs the proof and not the pages', async (t) => {
  const full = new Verifier({ when: 'after-resume', asId: 1, logPath: '/dev/full', send: () => {} })
  full.noteLazy(table([0, 2]), pages(1, 2), table([5, 1]))
  t.match(full.report, { unproven: 3 })
})
