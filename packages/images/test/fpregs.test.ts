import assert from 'node:assert/strict'
import fc from 'fast-check'
import t from 'tap'
import {
  decodeImage,
  encodeImage,
  entryToRegs,
  fpregsToXstate,
  regsToEntry,
  xstateLayoutOf,
  xstateToFpregs,
} from '../src/index.js'

/** Machines by their component mask, buffer size, and where each component lies (offset, bytes) by its bit. */
const machines = {
  'Intel with AVX-512 and PKU': {
    enabled: 0x2e7,
    bytes: 2696,
    at: { 2: [576, 256], 5: [1088, 64], 6: [1152, 512], 7: [1664, 1024], 9: [2688, 8] },
  },
  'Intel with MPX': { enabled: 0x1f, bytes: 1088, at: { 2: [576, 256], 3: [960, 64], 4: [1024, 64] } },
  'Intel with AMX': {
    enabled: 0x602e7,
    bytes: 11008,
    at: { 2: [576, 256], 5: [1088, 64], 6: [1152, 512], 7: [1664, 1024], 9: [2688, 8] },
  },
  'AMD Zen 4': {
    enabled: 0x2e7,
    bytes: 2440,
    at: { 2: [576, 256], 5: [832, 64], 6: [896, 512], 7: [1408, 1024], 9: [2432, 8] },
  },
  'AMD Zen 4, virtual, no PKU': {
    enabled: 0xe7,
    bytes: 2432,
    at: { 2: [576, 256], 5: [832, 64], 6: [896, 512], 7: [1408, 1024] },
  },
  'AVX only': { enabled: 0x7, bytes: 832, at: { 2: [576, 256] } },
} as const
type Machine = (typeof machines)[keyof typeof machines]

/** A buffer as the kernel would give it: components out of use are zero, and so is everything reserved. */
function buffer(machine: Machine, used: number, random: Uint8Array): Uint8Array {
  const xstate = new Uint8Array(machine.bytes)
  xstate.set(random.subarray(0, 416))
  const view = new DataView(xstate.buffer)
  view.setBigUint64(464, BigInt(machine.enabled), true)
  let bits = used & 3
  for (const [bit, [offset, bytes]] of Object.entries(machine.at)) {
    if ((used & (1 << Number(bit))) === 0) continue
    bits |= 1 << Number(bit)
    xstate.set(random.subarray(offset % 1000, (offset % 1000) + bytes), offset)
    xstate[offset] |= 1
  }
  view.setBigUint64(512, BigInt(bits), true)
  return xstate
}
const anyRandom = fc.uint8Array({ minLength: 2100, maxLength: 2100 })

for (const [name, machine] of Object.entries(machines)) {
  t.test(`${name}: nothing is lost, through the image and back`, async (_t) => {
    const property = (used: number, random: Uint8Array) => {
      const xstate = buffer(machine, used, random)
      const fpregs = xstateToFpregs(xstate)
      const gpregs = regsToEntry(new BigUint64Array(27))
      const core = { mtype: 1, threadInfo: { clearTidAddr: 0n, gpregs, fpregs, tls: [] } } as const
      const arrived = decodeImage('core', encodeImage('core', core)).threadInfo?.fpregs
      assert.deepStrictEqual(arrived, fpregs)
      assert.deepStrictEqual(fpregsToXstate(fpregs, xstateLayoutOf(xstate)), xstate)
    }
    fc.assert(fc.property(fc.nat({ max: 0x3ff }), anyRandom, property), { numRuns: 50 })
  })
}

t.test('the fields are where the manuals say', async (t) => {
  const xstate = Uint8Array.from({ length: 2440 }, (_, i) => (i * 7) & 0xff)
  xstate.fill(0, 416, 576)
  const view = new DataView(xstate.buffer)
  view.setBigUint64(464, 0x2e7n, true)
  view.setBigUint64(512, 0x2e7n, true)
  const fpregs = xstateToFpregs(xstate)
  t.match(fpregs, {
    cwd: 0x0700,
    swd: 0x150e,
    twd: 0x231c,
    fop: 0x312a,
    rip: 0x69625b544d463f38n,
    mxcsr: 0xbdb6afa8,
  })
  t.equal(fpregs.stSpace.length, 32)
  t.equal(fpregs.stSpace[0], view.getUint32(32, true))
  t.equal(fpregs.xmmSpace[63], view.getUint32(412, true))
  const { xsave } = fpregs
  t.equal(xsave?.ymmhSpace[63], view.getUint32(828, true))
  t.equal(xsave?.opmaskReg[0], view.getBigUint64(832, true))
  t.equal(xsave?.zmmUpper[0], view.getBigUint64(896, true))
  t.equal(xsave?.hi16Zmm[127], view.getBigUint64(2424, true))
  t.equal(xsave?.pkru[0], view.getUint32(2432, true))
  t.same(xsave?.bndregState, [])
})

t.test('from an AMD machine to an Intel one and back', async (_t) => {
  const zen = machines['AMD Zen 4']
  const intel = machines['Intel with AVX-512 and PKU']
  const intelLayout = xstateLayoutOf(buffer(intel, 0, new Uint8Array(2100)))
  const property = (used: number, random: Uint8Array) => {
    const here = buffer(zen, used, random)
    const there = fpregsToXstate(xstateToFpregs(here), intelLayout)
    assert.deepStrictEqual(
      there,
      buffer(intel, used, random)
        .fill(0, 576)
        .map((byte, i) => (i < 576 ? byte : there[i])),
    )
    assert.deepStrictEqual(fpregsToXstate(xstateToFpregs(there), xstateLayoutOf(here)), here)
  }
  fc.assert(fc.property(fc.nat({ max: 0x3ff }), anyRandom, property), { numRuns: 50 })
})

t.test('what cannot be moved is refused', async (t) => {
  const random = new Uint8Array(2100).fill(0x5a)
  const tiles = buffer(machines['Intel with AMX'], 7, random)
  xstateToFpregs(tiles)
  new DataView(tiles.buffer).setBigUint64(512, 0x40007n, true)
  t.throws(() => xstateToFpregs(tiles), { code: 'REFUSED', details: { components: '0x40000' } })

  const wide = xstateToFpregs(buffer(machines['AMD Zen 4'], 0xff, random))
  const narrow = xstateLayoutOf(buffer(machines['AVX only'], 7, random))
  t.throws(() => fpregsToXstate(wide, narrow), { code: 'REFUSED' })
  const unused = xstateToFpregs(buffer(machines['AMD Zen 4'], 7, random))
  t.equal(fpregsToXstate(unused, narrow).length, 832, 'AVX-512 that nobody uses is no obstacle')
})

t.test('the rights register counts also without its bit in XSTATE_BV', async (t) => {
  const xstate = buffer(machines['AMD Zen 4'], 7, new Uint8Array(2100))
  new DataView(xstate.buffer).setUint32(2432, 0x55555554, true)
  const fpregs = xstateToFpregs(xstate)
  t.same(fpregs.xsave?.pkru, [0x55555554, 0])
  t.equal(
    new DataView(fpregsToXstate(fpregs, xstateLayoutOf(xstate)).buffer).getBigUint64(512, true) >> 9n,
    1n,
  )
})

t.test('unknown layouts and malformed messages', async (t) => {
  const odd = new Uint8Array(2500)
  new DataView(odd.buffer).setBigUint64(464, 0x2e7n, true)
  t.throws(() => xstateLayoutOf(odd), { code: 'UNSUPPORTED_HOST' })
  t.throws(() => xstateLayoutOf(new Uint8Array(512)), { code: 'UNSUPPORTED_HOST' })
  t.throws(() => xstateLayoutOf(new Uint8Array(576)), { code: 'UNSUPPORTED_HOST' })

  const xstate = buffer(machines['AVX only'], 7, new Uint8Array(2100))
  const layout = xstateLayoutOf(xstate)
  const good = xstateToFpregs(xstate)
  const { xsave, ...legacy } = good
  t.equal(
    new DataView(fpregsToXstate(legacy, layout).buffer).getBigUint64(512, true),
    3n,
    'no xsave: x87 and SSE',
  )
  t.throws(() => fpregsToXstate({ ...good, stSpace: [1] }, layout), { code: 'PROTOCOL' })
  t.throws(() => fpregsToXstate({ ...good, cwd: 65536 }, layout), { code: 'PROTOCOL' })
  t.throws(() => fpregsToXstate({ ...good, xsave: { ...good.xsave, ymmhSpace: [] } as never }, layout), {
    code: 'PROTOCOL',
  })
  xstate[520] = 1
  t.throws(() => xstateToFpregs(xstate), { code: 'INTERNAL' })
})

t.test('general registers', async (t) => {
  const regs = BigUint64Array.from({ length: 27 }, (_, i) => 2n ** 63n + BigInt(i))
  const entry = regsToEntry(regs)
  t.match(entry, {
    r15: regs[0],
    bp: regs[4],
    origAx: regs[15],
    ip: regs[16],
    sp: regs[19],
    fsBase: regs[21],
    gs: regs[26],
  })
  t.strictSame(entryToRegs(entry), regs)
  t.throws(() => entryToRegs({ ...entry, mode: 2 }), { code: 'REFUSED' })
  t.throws(() => regsToEntry(new BigUint64Array(26)), { code: 'INTERNAL' })
})
