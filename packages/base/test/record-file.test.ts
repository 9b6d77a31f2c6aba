import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { crc32, encodeRecord, maxRecordBytes, RecordFile, scanRecords } from '../src/record-file.js'

const RECORDS = [{ type: 'ready' }, { type: 'commit', at: 12 }, { type: 'abandoned', reason: 'Überlauf' }]
const ENCODED = RECORDS.map(encodeRecord)
const WHOLE = Buffer.concat(ENCODED)

t.test('bytes are what the header says', async (t) => {
  t.equal(crc32(Buffer.from('123456789')), 0xcbf43926, 'the check value of CRC-32')
  t.equal(crc32(Buffer.alloc(0)), 0)
  t.equal(
    Buffer.from(encodeRecord({ a: 1 })).toString('hex'),
    `07000000${Buffer.from(new Uint32Array([crc32(Buffer.from('{"a":1}'))]).buffer).toString('hex')}7b2261223a317d`,
  )
})

t.test('what was appended is read again, by the next open and without one', async (t) => {
  const file = path.join(t.testdir(), 'journal')
  t.strictSame(RecordFile.read(file), { records: [], endBytes: 0, tailBytes: 0 })
  const first = RecordFile.open(file)
  t.strictSame(first.records, [])
  t.equal(fs.statSync(file).mode & 0o777, 0o600)
  for (const record of RECORDS.slice(0, 2)) first.append(record)
  first.close()
  first.close()
  t.throws(() => first.append({}), { code: 'INTERNAL' })
  const second = RecordFile.open(file)
  t.strictSame(second.records, RECORDS.slice(0, 2))
  second.append(RECORDS[2])
  second.close()
  t.strictSame(RecordFile.read(file).records, RECORDS)
  const bytes = fs.readFileSync(file)
  t.strictSame(bytes.subarray(0, WHOLE.length), WHOLE)
  t.ok(
    bytes.length > WHOLE.length && bytes.subarray(WHOLE.length).every((byte) => byte === 0),
    'room behind it',
  )
  t.throws(() => RecordFile.open(path.join(t.testdirName, 'missing', 'journal')), { code: 'ENOENT' })
})

t.test('a tear at every byte position', async (t) => {
  const file = path.join(t.testdir(), 'journal')
  const ends = [0]
  for (const bytes of ENCODED) ends.push((ends.at(-1) as number) + bytes.length)
  for (let cut = 0; cut <= WHOLE.length; cut++) {
    const whole = ends.filter((end) => end <= cut).length - 1
    // The file ends there; or its length was recorded but the blocks behind `cut` were not (zeros).
    for (const tail of [0, WHOLE.length - cut, WHOLE.length - cut + 4096]) {
      fs.writeFileSync(file, Buffer.concat([WHOLE.subarray(0, cut), Buffer.alloc(tail)]))
      const opened = RecordFile.open(file)
      t.strictSame(opened.records, RECORDS.slice(0, whole), `cut at ${cut}, ${tail} zeros`)
      t.ok(
        fs
          .readFileSync(file)
          .subarray(ends[whole])
          .every((byte) => byte === 0),
        'the rest is gone',
      )
      opened.append({ type: 'after' })
      opened.close()
      t.strictSame(RecordFile.read(file).records, [...RECORDS.slice(0, whole), { type: 'after' }])
    }
  }
})

t.test('a wrong byte is never read as a record, and never costs an earlier one', async (t) => {
  const file = path.join(t.testdir(), 'journal')
  const last = WHOLE.length - ENCODED[2].length
  for (let at = 0; at < WHOLE.length; at++) {
    const bytes = Buffer.from(WHOLE)
    bytes[at] ^= 0x41
    fs.writeFileSync(file, bytes)
    const before = at < ENCODED[0].length ? 0 : at < last ? 1 : 2
    try {
      const { records } = RecordFile.read(file)
      t.strictSame(records, RECORDS.slice(0, before), `byte ${at}`)
      // Only a record that can be the torn one may be dropped without a word: the last, or one whose
      // length now says so.
      const header = at - (before === 0 ? 0 : before === 1 ? ENCODED[0].length : last)
      t.ok(before === 2 || header < 4, `byte ${at}`)
    } catch (error) {
      t.match(error, { code: 'INTERNAL', message: /damaged at byte/ })
      t.throws(() => RecordFile.open(file), { code: 'INTERNAL' })
      t.strictSame(fs.readFileSync(file), bytes, 'nothing was changed')
    }
  }
})

t.test('the size is bounded, both ways', async (t) => {
  const file = path.join(t.testdir(), 'journal')
  const opened = RecordFile.open(file)
  t.throws(() => opened.append({ big: 'x'.repeat(maxRecordBytes) }), {
    code: 'BAD_REQUEST',
    details: { written: 'no' },
  })
  t.throws(() => opened.append(undefined), { code: 'BAD_REQUEST' })
  opened.append('x'.repeat(maxRecordBytes - 2))
  opened.close()
  t.equal(RecordFile.read(file).records.length, 1)
  const huge = Buffer.alloc(64)
  huge.writeUInt32LE(0xfffffff0, 0)
  t.throws(() => scanRecords(huge), { code: 'INTERNAL' })
})

t.test('a failed append leaves no record behind and says what is known', async (t) => {
  const file = path.join(t.testdir(), 'journal')
  const opened = RecordFile.open(file)
  opened.append(RECORDS[0])
  const { fdatasyncSync, ftruncateSync } = fs
  t.teardown(() => Object.assign(fs, { fdatasyncSync, ftruncateSync }))
  const fail = () => {
    throw Object.assign(new Error('ENOSPC'), { code: 'ENOSPC', syscall: 'fdatasync' })
  }
  fs.fdatasyncSync = fail
  t.throws(() => opened.append(RECORDS[1]), { code: 'KERNEL', details: { written: 'no' } })
  fs.fdatasyncSync = fdatasyncSync
  t.strictSame(RecordFile.read(file).records, RECORDS.slice(0, 1))
  opened.append(RECORDS[1])
  t.strictSame(RecordFile.read(file).records, RECORDS.slice(0, 2))
  fs.fdatasyncSync = fail
  fs.ftruncateSync = fail
  t.throws(() => opened.append(RECORDS[2]), { code: 'KERNEL', details: { written: 'unknown' } })
  Object.assign(fs, { fdatasyncSync, ftruncateSync })
  t.throws(
    () => opened.append(RECORDS[2]),
    { code: 'KERNEL', details: { written: 'no' } },
    'it must be opened again',
  )
  opened.close()
  t.strictSame(RecordFile.read(file).records, RECORDS, 'here the record had got there')
})
