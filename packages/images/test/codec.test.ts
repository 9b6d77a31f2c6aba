import assert from 'node:assert/strict'
import { PageferryError } from '@pageferry/base'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { type SchemaField, schema } from '#generated/schema'
import {
  decodeImage,
  encodeImage,
  FdType,
  IMAGE_KINDS,
  type ImageKindName,
  imageFileName,
  Lsm,
} from '../src/index.js'
import { fromHex, toHex } from './hex.js'

const magic = '19435654' // 0x54564319
const fown = { uid: 0, euid: 0, signum: 0, pidType: 0, pid: 0 }
const protocol = { name: 'PageferryError', code: 'PROTOCOL' }

function check<K extends ImageKindName>(t: Test, kind: K, content: unknown, hexText: string): void {
  const bytes = fromHex(hexText)
  t.equal(toHex(encodeImage(kind, content as never)), toHex(bytes), `${kind} encodes`)
  t.strictSame(decodeImage(kind, bytes), content, `${kind} decodes`)
}

t.test('images are the bytes they should be', async (t) => {
  const rootIds = { vmId: 1, filesId: 1, fsId: 1, sighandId: 1 }
  const inventory = {
    imgVersion: 2,
    fdinfoPerId: true,
    rootIds,
    nsPerId: true,
    lsmtype: Lsm.NO_LSM,
    dumpUptime: 300n,
  }
  const inventoryHex = `
    16313158                      # 0x58313116, and no common magic before it
    15000000                      # 21 bytes
    08 02                         # img_version
    10 01                         # fdinfo_per_id
    1a 08 0801 1001 1801 2001     # root_ids
    20 01                         # ns_per_id
    30 00                         # lsmtype
    40 ac02                       # dump_uptime`
  check(t, 'inventory', inventory, inventoryHex)

  const tasks = [
    { pid: 12345, ppid: 0, pgid: 12345, sid: 1, threads: [12345, 12346] },
    { pid: 7, ppid: 12345, pgid: 7, sid: 7, threads: [] },
  ]
  const tasksHex = `${magic} 30302750
    10000000 08b960 1000 18b960 2001 28b960 28ba60
    09000000 0807 10b960 1807 2007`
  check(t, 'pstree', tasks, tasksHex)

  const reg = {
    id: 3,
    flags: 0o102002,
    pos: 2n ** 40n,
    fown,
    name: '/tmp/ü',
    mntId: -1,
    size: 5n,
    mode: 0o100644,
  }
  const filesHex = `${magic} 38313056
    30000000                      # 48 bytes
    08 01                         # type
    10 03                         # id
    1a 2a                         # reg, 42 bytes
      08 03                       # id
      10 828802                   # flags
      18 808080808020             # pos
      2a 0a 0800 1000 1800 2000 2800
      32 07 2f746d702fc3bc        # name
      38 01                       # mnt_id: -1 in zigzag
      40 05                       # size
      50 a48302                   # mode`
  check(t, 'files', [{ type: FdType.REG, id: 3, reg }], filesHex)

  const data = [
    { pipeId: 9, bytes: 3, size: 65536, data: fromHex('616263') },
    { pipeId: 10, bytes: 0, data: fromHex('') },
  ]
  check(t, 'pipes-data', data, `${magic} 09374556 08000000 0809 1003 18808004 616263 04000000 080a 1000`)

  const timens = { monotonic: { tvSec: 1n, tvNsec: 999_999_999n }, boottime: { tvSec: 0n, tvNsec: 0n } }
  check(t, 'timens', timens, `${magic} 33441143 10000000 0a08 0801 10ff93ebdc03 1204 0800 1000`)

  const fdinfo = [{ id: 3, flags: 1, type: FdType.PIPE, fd: 0 }]
  check(t, 'fdinfo', fdinfo, `${magic} 32372156 08000000 0803 1001 1802 2000`)

  const core = decodeImage(
    'core',
    fromHex(`${magic} 47380555
      2d000000                    # 45 bytes
      08 01                       # x86_64
      1a 18 0801 1000 1800 2000 2800 320161   # tc
        70 98f8ffffffffffffff01   # oom_score_adj: int32 -1000 fills 64 bits
      2a 0f                       # thread_core
        08 ffffffffffffffffff01   # futex_rla
        10 18                     # futex_rla_len
        18 09                     # sched_nice: -5 in zigzag`),
  )
  t.equal(core.tc?.oomScoreAdj, -1000)
  t.same(core.tc?.sigactions, [])
  t.strictSame(core.threadCore, { futexRla: 2n ** 64n - 1n, futexRlaLen: 24, schedNice: -5, attributes: [] })
})

t.test('64-bit fields keep every bit', async (t) => {
  const values = [
    0n,
    1n,
    2n ** 31n,
    2n ** 32n - 1n,
    2n ** 32n,
    2n ** 53n + 1n,
    2n ** 63n - 1n,
    2n ** 63n,
    2n ** 64n - 1n,
  ]
  const vma = { end: 0n, pgoff: 0n, shmid: 0n, prot: 0, flags: 0, status: 0 }
  const vmas = values.map((start) => ({ ...vma, start, fd: BigInt.asIntN(64, ~start) }))
  const decoded = decodeImage('mm', encodeImage('mm', { ...emptyMm, vmas, mmSavedAuxv: values }))
  t.same(decoded.mmSavedAuxv, values)
  t.same(
    decoded.vmas.map(({ start, fd }) => [start, fd]),
    vmas.map(({ start, fd }) => [start, fd]),
  )
  // A safe number is as good; anything else is refused rather than written as something else.
  const plain = decodeImage('mm', encodeImage('mm', { ...emptyMm, mmBrk: Number.MAX_SAFE_INTEGER }))
  t.equal(plain.mmBrk, BigInt(Number.MAX_SAFE_INTEGER))
  for (const mmBrk of [2 ** 53, -1, -1n, 1.5, Number.NaN, 2n ** 64n, '1', null]) {
    const message = /MmEntry\.mmBrk must be/
    t.throws(
      () => encodeImage('mm', { ...emptyMm, mmBrk } as never),
      { code: 'INTERNAL', message },
      String(mmBrk),
    )
  }
})

const emptyMm = Object.fromEntries(
  schema.MmEntry.filter((field) => field.rule === 'required').map(({ name, type }) => [
    name,
    type === 'uint64' ? 0n : 0,
  ]),
) as never as Parameters<typeof encodeImage<'mm'>>[1]

t.test('what the format cannot say is refused', async (t) => {
  const fs = { cwdId: 1, rootId: 2, umask: 18 }
  const bad: [string, unknown][] = [
    ['bigint in a 32-bit field', { ...fs, umask: 18n }],
    ['too large for 32 bits', { ...fs, umask: 2 ** 32 }],
    ['negative', { ...fs, umask: -1 }],
    ['missing', { cwdId: 1 }],
    ['unknown field', { ...fs, mask: 1 }],
    ['not a message', 7],
    ['array', [fs]],
  ]
  for (const [name, content] of bad)
    t.throws(() => encodeImage('fs', content as never), { code: 'INTERNAL' }, name)
  const reg = { id: 1, flags: 0, pos: 0n, fown, name: '/\uFFFD' }
  t.throws(
    () => encodeImage('files', [{ type: FdType.REG, id: 1, reg }]),
    { code: 'INTERNAL' },
    'bytes that were no UTF-8',
  )
  t.throws(() => encodeImage('files', [{ type: 3 as never, id: 1 }]), { code: 'INTERNAL' }, 'enum')
  const pipe = { pipeId: 1, bytes: 2, data: fromHex('00') }
  t.throws(() => encodeImage('pipes-data', [pipe]), { code: 'INTERNAL' }, 'trailing bytes of another length')
  const signals = Array.from({ length: 70_000 }, () => ({ siginfo: new Uint8Array(128) }))
  const thread = { futexRla: 0n, futexRlaLen: 0, signalsP: { signals } }
  t.throws(() => encodeImage('core', { mtype: 1, threadCore: thread }), { code: 'REFUSED' }, 'over the limit')
})

t.test('malformed images are protocol errors', async (t) => {
  const cases: [ImageKindName, string, string, RegExp][] = [
    ['fs', '', 'empty', /wrong magic/],
    ['fs', `${magic} 12394050`, 'wrong magic', /wrong magic/],
    ['fs', `${magic} 12394051`, 'no message', /no message/],
    ['fs', `${magic} 12394051 0400`, 'half a length', /a length is cut off/],
    ['fs', `${magic} 12394051 ffffffff 08011002`, 'length of 4 GiB', /a message of 4294967295 bytes/],
    ['fs', `${magic} 12394051 05000000 08011002`, 'length beyond the end', /a message is cut off/],
    ['fs', `${magic} 12394051 02000000 0801`, 'required field missing', /missing required 'rootId'/],
    ['fs', `${magic} 12394051 03000000 080110`, 'field cut off', /out of range/],
    ['fs', `${magic} 12394051 04000000 08011002 04000000 08011002`, 'two messages', /more than 1 message/],
    ['fs', `${magic} 12394051 06000000 08011002 220a`, 'unknown field beyond the end', /out of range/],
    ['inventory', `${magic} 16313158 02000000 0802`, 'common magic where none belongs', /wrong magic/],
    ['core', `${magic} 47380555 02000000 0803`, 'another machine', /missing required 'mtype'/],
    [
      'pipes-data',
      `${magic} 09374556 04000000 0801 1002 00`,
      'trailing bytes cut off',
      /bytes after a message are cut off/,
    ],
    [
      'pipes-data',
      `${magic} 09374556 08000000 0801 10ffffffff0f`,
      'trailing length of 4 GiB',
      /4294967295 bytes after/,
    ],
  ]
  for (const [kind, text, name, message] of cases) {
    t.throws(() => decodeImage(kind, fromHex(text)), { ...protocol, message }, name)
  }
  const newer = fromHex(`${magic} 12394051 0a000000 0801 1002 f83f01 220141`)
  t.strictSame(decodeImage('fs', newer), { cwdId: 1, rootId: 2 }, 'fields of newer formats are skipped')
})

t.test('round trips of any message, cut and damaged', async (_t) => {
  for (const kind of Object.keys(IMAGE_KINDS) as ImageKindName[]) {
    const one = IMAGE_KINDS[kind].cardinality === 'one'
    const message = anyMessage(IMAGE_KINDS[kind].message).map((fields) =>
      kind === 'pipes-data' ? { ...fields, bytes: 3, data: fromHex('010203') } : fields,
    )
    const content = one ? message : fc.array(message, { maxLength: 5 })
    const run = (content: unknown, position: number, bit: number) => {
      const bytes = encodeImage(kind, content as never)
      assert.deepStrictEqual(decodeImage(kind, bytes), content)
      const at = position % bytes.length
      // Between two messages a shorter file is whole; a flipped bit may still be a message. Never anything else.
      const damaged = bytes.slice()
      damaged[at] ^= 1 << bit
      for (const input of [bytes.subarray(0, at), damaged]) {
        try {
          decodeImage(kind, input)
        } catch (error) {
          if (!(error instanceof PageferryError) || error.code !== 'PROTOCOL') throw error
        }
      }
      if (one) assert.throws(() => decodeImage(kind, bytes.subarray(0, at)), protocol)
    }
    fc.assert(fc.property(content, fc.nat(), fc.nat({ max: 7 }), run), { numRuns: 60 })
  }
})

t.test('file names', async (t) => {
  t.equal(imageFileName('core', 12), 'core-12.img')
  t.equal(imageFileName('pagemap', 12), 'pagemap-12.img')
  t.equal(imageFileName('inventory'), 'inventory.img')
  t.throws(() => imageFileName('core'), { code: 'INTERNAL' })
  t.throws(() => imageFileName('files', 1), { code: 'INTERNAL' })
})

function anyMessage(name: string): fc.Arbitrary<Record<string, unknown>> {
  const fields = schema[name]
  const model = Object.fromEntries(
    fields.map((field) => [
      field.name,
      field.rule === 'repeated' ? fc.array(anyValue(field), { maxLength: 3 }) : anyValue(field),
    ]),
  )
  const requiredKeys = fields.filter((field) => field.rule !== 'optional').map((field) => field.name)
  return fc.record(model, { requiredKeys, noNullPrototype: true }) as fc.Arbitrary<Record<string, unknown>>
}

function anyValue(field: SchemaField): fc.Arbitrary<unknown> {
  switch (field.type) {
    case 'uint32':
      return fc.integer({ min: 0, max: 2 ** 32 - 1 })
    case 'int32':
    case 'sint32':
      return fc.integer()
    case 'uint64':
      return fc.bigInt({ min: 0n, max: 2n ** 64n - 1n })
    case 'sint64':
      return fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n })
    case 'bool':
      return fc.boolean()
    case 'string':
      return fc.string({ unit: 'binary' }).filter((text) => !text.includes('\uFFFD'))
    case 'bytes':
      return fc.uint8Array()
    case 'enum':
      return fc.constantFrom(...(field.values ?? []))
    case 'message':
      return anyMessage(field.message as string)
  }
}
