// FPU and vector registers: converts between the buffer of PTRACE_GETREGSET(NT_X86_XSTATE) and the image's message.
//
//   0     legacy area of FXSAVE; its bytes 464-471, unused by the CPU, hold the kernel's enabled components
//   512   header: XSTATE_BV (components that are not in their initial state), XCOMP_BV (0: not compacted), zeros
//   576   AVX, and from there on each component where CPUID leaf 0xD says (Intel SDM vol. 1, 13.4)
//
// Two families of offsets exist. Intel's are fixed, with room for components that the CPU lacks. AMD packs the existing
// components one behind the other: zmm0-15 begin at 1152 on Intel and at 896 on a Zen 4. So the layout is that of the
// buffer's machine, and the image's message, which has one field per component, is independent of it.

import { hex, PageferryError } from '@pageferry/base'
import type { UserX86Fpregs, UserX86Xsave } from './types.js'

type XsaveField = Exclude<keyof UserX86Xsave, 'xstateBv'>

interface Component {
  readonly field: XsaveField
  readonly bit: number
  readonly bytes: number
  readonly wordBytes: 4 | 8
  readonly intelOffset: number
}

const components: readonly Component[] = [
  { field: 'ymmhSpace', bit: 2, bytes: 256, wordBytes: 4, intelOffset: 576 },
  { field: 'bndregState', bit: 3, bytes: 64, wordBytes: 8, intelOffset: 960 },
  { field: 'bndcsrState', bit: 4, bytes: 64, wordBytes: 8, intelOffset: 1024 },
  { field: 'opmaskReg', bit: 5, bytes: 64, wordBytes: 8, intelOffset: 1088 },
  { field: 'zmmUpper', bit: 6, bytes: 512, wordBytes: 8, intelOffset: 1152 },
  { field: 'hi16Zmm', bit: 7, bytes: 1024, wordBytes: 8, intelOffset: 1664 },
  { field: 'pkru', bit: 9, bytes: 8, wordBytes: 4, intelOffset: 2688 },
]
const x87 = 1n << 0n
const sse = 1n << 1n
const mpx = 3n << 3n
const pkru = 1n << 9n
const movable = components.reduce((mask, { bit }) => mask | (1n << BigInt(bit)), x87 | sse)

/** AMX tiles lie last. They cannot be moved while in use, but a buffer with room for them must be recognised. */
const intelAmx = { mask: 3n << 17n, endOffset: 2816 + 8192 }

const enabledOffset = 464
const xstateBvOffset = 512
const xcompBvOffset = 520
const legacyEnd = 576
const stSpace = { offset: 32, words: 32 }
const xmmSpace = { offset: 160, words: 64 }

/** The layout of one machine's buffer. */
export interface XstateLayout {
  readonly bytes: number
  /** Components that the kernel has enabled: the user part of XCR0. */
  readonly enabled: bigint
  readonly offsets: Readonly<Partial<Record<XsaveField, number>>>
}

/**
 * Finds the layout of a buffer from this machine's kernel: its last enabled component ends where the buffer does.
 * Throws UNSUPPORTED_HOST if that is neither Intel's nor AMD's, instead of reading registers from wrong places.
 */
export function xstateLayoutOf(xstate: Uint8Array): XstateLayout {
  const enabled = xstate.length < legacyEnd ? 0n : viewOf(xstate).getBigUint64(enabledOffset, true)
  const found = components.filter(({ bit }) => has(enabled, bit))
  const amx = (enabled & intelAmx.mask) !== 0n
  const known = (enabled & ~(movable | intelAmx.mask)) === 0n

  const fixed = Object.fromEntries(found.map(({ field, intelOffset }) => [field, intelOffset]))
  const last = found.at(-1)
  const fixedEnd = amx ? intelAmx.endOffset : last === undefined ? legacyEnd : last.intelOffset + last.bytes
  if (known && enabled !== 0n && fixedEnd === xstate.length)
    return { bytes: fixedEnd, enabled, offsets: fixed }

  let packedEnd = legacyEnd
  const packed: Partial<Record<XsaveField, number>> = {}
  for (const { field, bytes } of found) {
    packed[field] = packedEnd
    packedEnd += bytes
  }
  if (known && enabled !== 0n && !amx && (enabled & mpx) === 0n && packedEnd === xstate.length) {
    return { bytes: packedEnd, enabled, offsets: packed }
  }
  throw new PageferryError(
    'UNSUPPORTED_HOST',
    `the processor's XSAVE layout is unknown: ${xstate.length} bytes, components ${hex(enabled)}`,
    { details: { bytes: xstate.length, components: hex(enabled) } },
  )
}

/**
 * Reads a thread's registers from the kernel's buffer. Throws REFUSED if a component without a field in the image
 * format is in use (AMX tiles, shadow stacks): it would be lost.
 */
export function xstateToFpregs(xstate: Uint8Array, layout = xstateLayoutOf(xstate)): UserX86Fpregs {
  const view = viewOf(xstate)
  let xstateBv = view.getBigUint64(xstateBvOffset, true)
  if (xstate.length !== layout.bytes || view.getBigUint64(xcompBvOffset, true) !== 0n) {
    throw new PageferryError('INTERNAL', 'the XSAVE buffer is compacted, or another machine’s')
  }
  if ((xstateBv & ~movable) !== 0n) throw notMovable(xstateBv & ~movable)
  // The kernel keeps PKRU outside the buffer and writes it there whatever XSTATE_BV says. It reads it only with its
  // bit.
  if (layout.offsets.pkru !== undefined && view.getUint32(layout.offsets.pkru, true) !== 0) xstateBv |= pkru

  const xsave: UserX86Xsave = {
    xstateBv,
    ymmhSpace: [],
    bndregState: [],
    bndcsrState: [],
    opmaskReg: [],
    zmmUpper: [],
    hi16Zmm: [],
    pkru: [],
  }
  for (const { field, bit, bytes, wordBytes } of components) {
    const offset = layout.offsets[field]
    if (!has(xstateBv, bit)) continue
    if (offset === undefined) throw notMovable(1n << BigInt(bit))
    const values: (number | bigint)[] = xsave[field]
    for (let at = offset; at < offset + bytes; at += wordBytes) {
      values.push(wordBytes === 4 ? view.getUint32(at, true) : view.getBigUint64(at, true))
    }
  }
  const words = ({ offset, words }: { offset: number; words: number }) =>
    Array.from({ length: words }, (_, i) => view.getUint32(offset + 4 * i, true))
  return {
    cwd: view.getUint16(0, true),
    swd: view.getUint16(2, true),
    twd: view.getUint16(4, true),
    fop: view.getUint16(6, true),
    rip: view.getBigUint64(8, true),
    rdp: view.getBigUint64(16, true),
    mxcsr: view.getUint32(24, true),
    mxcsrMask: view.getUint32(28, true),
    stSpace: words(stSpace),
    xmmSpace: words(xmmSpace),
    xsave,
  }
}

/**
 * Makes the buffer that PTRACE_SETREGSET(NT_X86_XSTATE) takes on the machine of `layout`. Components that are not in
 * the message get their initial state. Throws REFUSED when this machine lacks a component that is in use, PROTOCOL when
 * the message's arrays have the wrong length.
 */
export function fpregsToXstate(fpregs: UserX86Fpregs, layout: XstateLayout): Uint8Array {
  const xstate = new Uint8Array(layout.bytes)
  const view = viewOf(xstate)
  const legacy = [fpregs.cwd, fpregs.swd, fpregs.twd, fpregs.fop]
  if (legacy.some((word) => word > 0xffff)) throw wrong('an x87 control word has more than 16 bits')
  legacy.forEach((word, i) => {
    view.setUint16(2 * i, word, true)
  })
  view.setBigUint64(8, fpregs.rip, true)
  view.setBigUint64(16, fpregs.rdp, true)
  view.setUint32(24, fpregs.mxcsr, true)
  view.setUint32(28, fpregs.mxcsrMask, true)
  putWords(view, 'stSpace', fpregs.stSpace, stSpace.offset, stSpace.words, 4)
  putWords(view, 'xmmSpace', fpregs.xmmSpace, xmmSpace.offset, xmmSpace.words, 4)
  view.setBigUint64(enabledOffset, layout.enabled, true)

  const xstateBv = fpregs.xsave?.xstateBv ?? x87 | sse
  if ((xstateBv & ~movable) !== 0n) throw notMovable(xstateBv & ~movable)
  view.setBigUint64(xstateBvOffset, xstateBv, true)
  for (const { field, bit, bytes, wordBytes } of components) {
    const offset = layout.offsets[field]
    if (fpregs.xsave === undefined || !has(xstateBv, bit)) continue
    if (offset === undefined) throw notMovable(1n << BigInt(bit))
    putWords(view, field, fpregs.xsave[field], offset, bytes / wordBytes, wordBytes)
  }
  return xstate
}

function putWords(
  view: DataView,
  field: string,
  values: readonly (number | bigint)[],
  offset: number,
  words: number,
  wordBytes: 4 | 8,
): void {
  if (values.length !== words) throw wrong(`${field} has ${values.length} elements, not ${words}`)
  values.forEach((value, i) => {
    if (wordBytes === 4) view.setUint32(offset + 4 * i, value as number, true)
    else view.setBigUint64(offset + 8 * i, value as bigint, true)
  })
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

function has(mask: bigint, bit: number): boolean {
  return ((mask >> BigInt(bit)) & 1n) === 1n
}

function notMovable(mask: bigint): PageferryError {
  const message = `a thread uses processor state that cannot be moved to this machine: XSAVE components ${hex(mask)}`
  return new PageferryError('REFUSED', message, { details: { components: hex(mask) } })
}

function wrong(what: string): PageferryError {
  return new PageferryError('PROTOCOL', `image core, fpregs: ${what}`)
}
