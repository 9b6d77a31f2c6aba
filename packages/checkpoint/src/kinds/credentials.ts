import type { CredsEntry } from '@pageferry/images'
import type { ProcStatus } from '../proc/status.js'
import type { CallBatch } from '../remote/call-batch.js'
import type { SkeletonProcess } from '../remote/skeleton-process.js'
import type { SyscallName } from '../remote/syscalls.js'
import type { WorkloadThread } from '../remote/workload-thread.js'

/** Credentials of one thread (credentials(7), capabilities(7)): each thread has its own in the kernel. */

const prGetSecurebits = 27
const prSetSecurebits = 28
const prCapbsetDrop = 24
const prCapAmbient = 47
const prCapAmbientRaise = 2
const prSetNoNewPrivs = 38
const capabilityVersion3 = 0x2008_0522
/** Keeps the permitted set and allows capset while user ids change (SECBIT_NO_SETUID_FIXUP | SECBIT_KEEP_CAPS). */
const securebitsDuringRestore = (1 << 2) | (1 << 4)

/** A capability set as CRIU stores it: 32-bit words, low first. */
function words(set: bigint): number[] {
  return [Number(set & 0xffff_ffffn), Number(set >> 32n)]
}

function fromWords(set: number[] | null | undefined): bigint {
  return BigInt((set?.[0] ?? 0) >>> 0) | (BigInt((set?.[1] ?? 0) >>> 0) << 32n)
}

/** @returns the answer, once the batch has run */
export function askSecurebits(batch: CallBatch): () => number {
  const result = batch.add('prctl', prGetSecurebits, 0, 0, 0, 0)
  return () => Number(result())
}

export function dumpCredentials({ status }: WorkloadThread, secbits: number): CredsEntry {
  return {
    uid: status.uids[0],
    euid: status.uids[1],
    suid: status.uids[2],
    fsuid: status.uids[3],
    gid: status.gids[0],
    egid: status.gids[1],
    sgid: status.gids[2],
    fsgid: status.gids[3],
    capInh: words(status.capInheritable),
    capPrm: words(status.capPermitted),
    capEff: words(status.capEffective),
    capBnd: words(status.capBounding),
    capAmb: words(status.capAmbient),
    secbits,
    groups: status.groups,
    noNewPrivs: status.noNewPrivs ? 1 : 0,
  }
}

/**
 * Restores credentials; steps that need privileges come first. Ids change under NO_SETUID_FIXUP, then all capabilities
 * are taken again. They are needed for the inheritable set, the ambient set, the bounding set and securebits, in this
 * order. The inheritable set may exceed the bounding set, but only if it was there before. Securebits may forbid to
 * raise the ambient set later. The final sets shrink last.
 *
 * @param own credentials that every thread of the skeleton begins with
 */
export function restoreCredentials(
  skeleton: SkeletonProcess,
  tid: number,
  creds: CredsEntry,
  own: Pick<ProcStatus, 'capPermitted' | 'capBounding'>,
): void {
  const groups = new Uint32Array(creds.groups ?? [])
  const call = (tid: number, name: SyscallName, ...args: (bigint | number)[]): void =>
    skeleton.queue(tid, name, args)
  call(tid, 'setgroups', groups.length, skeleton.put(new Uint8Array(groups.buffer)))
  call(tid, 'prctl', prSetSecurebits, securebitsDuringRestore, 0, 0, 0)
  call(tid, 'setresgid', creds.gid, creds.egid, creds.sgid)
  call(tid, 'setfsgid', creds.fsgid)
  call(tid, 'setresuid', creds.uid, creds.euid, creds.suid)
  call(tid, 'setfsuid', creds.fsuid)
  const inheritable = fromWords(creds.capInh)
  setCapabilities(skeleton, tid, own.capPermitted, own.capPermitted, inheritable)
  for (const cap of capabilitiesIn(fromWords(creds.capAmb))) {
    call(tid, 'prctl', prCapAmbient, prCapAmbientRaise, cap, 0, 0)
  }
  for (const cap of capabilitiesIn(own.capBounding & ~fromWords(creds.capBnd))) {
    call(tid, 'prctl', prCapbsetDrop, cap, 0, 0, 0)
  }
  call(tid, 'prctl', prSetSecurebits, creds.secbits, 0, 0, 0)
  setCapabilities(skeleton, tid, fromWords(creds.capEff), fromWords(creds.capPrm), inheritable)
  if (creds.noNewPrivs === 1) call(tid, 'prctl', prSetNoNewPrivs, 1, 0, 0, 0)
}

function capabilitiesIn(set: bigint): number[] {
  return Array.from({ length: 64 }, (_, cap) => cap).filter((cap) => (set & (1n << BigInt(cap))) !== 0n)
}

function setCapabilities(
  skeleton: SkeletonProcess,
  tid: number,
  effective: bigint,
  permitted: bigint,
  inheritable: bigint,
): void {
  const bytes = Buffer.alloc(8 + 24)
  bytes.writeUInt32LE(capabilityVersion3, 0)
  const sets = [effective, permitted, inheritable]
  for (const [i, set] of sets.entries()) {
    bytes.writeUInt32LE(Number(set & 0xffff_ffffn), 8 + 4 * i)
    bytes.writeUInt32LE(Number(set >> 32n), 20 + 4 * i)
  }
  const address = skeleton.put(bytes)
  skeleton.queue(tid, 'capset', [address, address + 8n])
}
