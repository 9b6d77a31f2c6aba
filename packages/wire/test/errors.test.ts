import { PageferryError } from '@pageferry/base'
import t from 'tap'
import {
  closeCodeOf,
  closeReason,
  decodeFrame,
  describeCloseCode,
  encodeFrame,
  errorToFrame,
  frameToError,
  fromJsonText,
  hashesToPayload,
  maxJsonChars,
  negotiate,
  payloadToHashes,
  toJsonText,
  WireError,
} from '../src/index.js'

t.test('an error crosses the wire', async (t) => {
  const info = {
    code: 'REFUSED' as const,
    message: 'has two problems',
    details: { problems: [{ what: 'fd 3', reason: 'socket' }] },
  }
  for (const type of ['cancel', 'failed', 'refusal'] as const) {
    const frame = errorToFrame(type, info)
    const decoded = decodeFrame(encodeFrame(frame), 'control', 'to-destination').frame
    t.strictSame(decoded, frame)
    t.strictSame(frameToError(frame), info)
  }
})

t.test('an error always fits a frame', async (t) => {
  const circular: Record<string, unknown> = {}
  circular.self = circular
  const details = [{ long: 'x'.repeat(maxJsonChars) }, circular, { big: 1n }, undefined, [1] as never]
  for (const value of details) {
    const frame = errorToFrame('failed', { code: 'KERNEL', message: '€'.repeat(100_000), details: value })
    t.doesNotThrow(() => encodeFrame(frame))
    t.type(frameToError(frame).details, 'object')
  }
  t.strictSame(fromJsonText(toJsonText({ big: 2n ** 64n })), { big: '18446744073709551616' })
  t.match(fromJsonText(toJsonText(circular)), { omitted: /circular/ })
  t.match(fromJsonText(toJsonText({ long: 'x'.repeat(maxJsonChars) })), { omitted: /characters/ })
})

t.test('a code of a later version', async (t) => {
  const frame = { type: 'failed' as const, code: 'NEW_THING', message: 'm', detailsJson: '{"a":1}' }
  t.strictSame(frameToError(frame), {
    code: 'REMOTE',
    message: 'm',
    details: { a: 1, remoteCode: 'NEW_THING' },
  })
})

t.test('close codes', async (t) => {
  t.equal(closeCodeOf(new WireError('BAD_RUNS', 'm')), 4105)
  t.equal(closeCodeOf(new PageferryError('CANCELLED', 'm')), 4014)
  t.equal(closeCodeOf(new TypeError('m')), 4018)
  t.match(describeCloseCode(4105), { name: 'BAD_RUNS' })
  t.match(describeCloseCode(4014), { name: 'CANCELLED' })
  t.equal(describeCloseCode(1006), undefined)
  t.match(new WireError('BAD_RUNS', 'm').toInfo(), {
    code: 'PROTOCOL',
    details: { fault: 'BAD_RUNS', closeCode: 4105 },
  })
})

t.test('a close reason is cut between characters', async (t) => {
  t.equal(closeReason('short'), 'short')
  t.equal(closeReason('x'.repeat(200)).length, 123)
  const cut = closeReason(`x${'😀'.repeat(100)}`)
  t.ok(Buffer.byteLength(cut) <= 123)
  t.notMatch(cut, /\ufffd/)
  t.equal(cut, `x${'😀'.repeat(30)}`)
})

t.test('negotiation', async (t) => {
  t.equal(negotiate([2]), 2)
  t.equal(negotiate([3, 1, 2]), 2)
  t.throws(() => negotiate([1, 3]), {
    code: 'VERSION_MISMATCH',
    details: { offered: [1, 3], supported: [2] },
  })
  t.throws(() => negotiate([]), { code: 'VERSION_MISMATCH' })
})

t.test('hashes at any alignment', async (t) => {
  const hashes = BigUint64Array.of(1n, 2n ** 64n - 1n, 0x0102030405060708n)
  const payload = hashesToPayload(hashes)
  t.equal(Buffer.from(payload.subarray(16)).toString('hex'), '0807060504030201')
  const shifted = Buffer.concat([Buffer.of(0), payload]).subarray(1)
  t.strictSame(payloadToHashes(shifted), hashes)
})
