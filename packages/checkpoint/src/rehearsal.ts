import { closeSync } from 'node:fs'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { encodeImage } from '@pageferry/images'
import { fds, type KeeperClient, launchKeeper, ptrace } from '@pageferry/kernel'
import { AreaMap, diffAreas, PageSet, rehearseFreeze } from '@pageferry/pages'
import { captureProcess } from './capture.js'
import { ownImages } from './kinds/descriptors/registry.js'
import { FileTable } from './kinds/file-table.js'
import { dumpMemoryMap } from './kinds/memory-map/read.js'
import { areasFromVmas } from './kinds/memory-map/vmas.js'
import { decodePagemapEntries, encodePagemapEntries } from './pagemap-image.js'
import { readFds } from './proc/fdinfo.js'
import { readVmFlags } from './proc/maps.js'
import { ProcessImages } from './process-images.js'
import { StoppedProcess } from './remote/stopped-process.js'
import { Restorer } from './restore.js'

/**
 * Measured on an idle machine: the capture of a dummy takes 17 ms, then 5, and after a dozen passes 3.3. Its restore
 * takes 19, then 6, and after a dozen 4.5. A pass costs that time, and for a restore also a keeper (20 ms).
 */
const defaultPasses = { capture: 16, restore: 8 }
const imagePasses = 15
const reapTimeoutMs = 5_000

export interface RehearsalOptions {
  /** Fires when something more urgent waits: the rehearsal ends after the current pass. */
  signal?: AbortSignal
  /** Default: as many as make a difference. */
  passes?: number
}

/**
 * Moves a dummy (a skeleton program) through capture and restore before the workload stands still. The code of a freeze
 * runs once per migration, and V8 takes five times as long for code that it runs for the first time. Measured: 30 ms of
 * a 45 ms capture and restore. The dummies die with this process, whatever ends it.
 *
 * @param dir gets one directory per dummy
 * @throws when this host cannot do it
 */
export async function rehearse(
  dir: string,
  what: 'capture' | 'restore',
  { signal, passes = defaultPasses[what] }: RehearsalOptions = {},
): Promise<void> {
  // For tests of other things: a rehearsal takes a third of the processor time of a small migration.
  if (process.env.PAGEFERRY_REHEARSAL === 'off') return
  rehearseFreeze((entries) => decodePagemapEntries(encodePagemapEntries(entries)))
  const dummy = await launchDummyKeeper(`${dir}/capture`)
  let captured: CapturedDummy
  try {
    captured = await captureDummy(dummy, what === 'capture' ? passes : 1, signal)
  } finally {
    dismiss(dummy)
  }
  rehearseImages(captured.images, captured.nsPid)
  if (what === 'capture') return
  for (let pass = 0; pass < passes && !signal?.aborted; pass++) {
    await rehearseRestore(`${dir}/restore-${pass}`, captured)
  }
}

/**
 * Ties the keeper to this process: kill -9 in the middle of a rehearsal leaves nothing that a successor would have to
 * end.
 */
function launchDummyKeeper(dir: string): Promise<KeeperClient> {
  return launchKeeper({ dir, newPidNamespace: true, tied: true })
}

async function rehearseRestore(dir: string, { images, nsPid }: CapturedDummy): Promise<void> {
  const target = await launchDummyKeeper(dir)
  let pid = 0
  try {
    pid = restoreDummy(target, images, nsPid)
  } finally {
    dismiss(target)
    reap(pid)
  }
}

/** Encodes and decodes the files that describe a process, and compares its memory map. */
function rehearseImages(images: ProcessImages, nsPid: number): void {
  for (let pass = 0; pass < imagePasses; pass++) {
    const received = new ProcessImages()
    for (const name of images.names) received.set(name, images.get(name))
    const mm = received.mm(nsPid)
    diffAreas(new AreaMap(), areasFromVmas(mm.vmas, received.files(), received.ghostIds()))
    encodeImage('mm', mm)
    encodeImage('core', received.core(nsPid))
    encodeImage('files', received.files())
    encodeImage('fs', received.fs(nsPid))
    encodeImage('fdinfo', received.fdinfo(received.core(nsPid).ids?.filesId ?? 1))
    for (const kind of ownImages) encodeImage(kind, received.messages(kind) as never)
    encodeImage('pstree', [received.pstree()])
  }
}

interface CapturedDummy {
  images: ProcessImages
  nsPid: number
}

/** After each pass the dummy runs on, like a workload whose migration failed. */
async function captureDummy(
  keeper: KeeperClient,
  passes: number,
  signal?: AbortSignal,
): Promise<CapturedDummy> {
  const [ours, theirs] = fds.socketpair(fds.SOCK_SEQPACKET)
  const { pid, pidfd, innerPid } = keeper.spawn({ pid: 0, socketFd: theirs })
  closeSync(theirs)
  fds.recv(ours, 1, 0, 1000)
  try {
    closeSocket(pid)
    for (let pass = 1; pass < passes && !signal?.aborted; pass++) {
      capture(pid)
      await nextTurn()
    }
    return { images: capture(pid), nsPid: innerPid }
  } finally {
    closeSync(ours)
    closeSync(pidfd)
  }
}

/** Sockets are not moved. */
function closeSocket(pid: number): void {
  const stopped = StoppedProcess.stop(pid, 'one')
  stopped.leader.call('close', 3)
  stopped.resume()
}

function capture(pid: number): ProcessImages {
  const stopped = StoppedProcess.stop(pid, 'all')
  const { map } = dumpMemoryMap(pid, readVmFlags(pid))
  stopped.mapScratch()
  const captured = captureProcess(stopped, map, readFds(pid), new FileTable(), { memoryPolicies: false })
  stopped.leave()
  stopped.detach()
  const images = new ProcessImages()
  for (const { name, bytes } of [...captured.images, captured.mapImage(new PageSet())])
    images.set(name, bytes)
  return images
}

function restoreDummy(keeper: KeeperClient, images: ProcessImages, nsPid: number): number {
  const restorer = Restorer.create(keeper, nsPid)
  try {
    const map = restorer.applyMap(images)
    restorer.beginState(images)
    restorer.presentPages()
    restorer.map.discard(map.pages(({ lazyEligible }) => lazyEligible))
    restorer.finishState(images)
    return restorer.pid
  } finally {
    restorer.skeleton.close()
    for (const fd of [restorer.uffd, restorer.skeleton.pidfd]) closeSync(fd)
  }
}

/** A killed tracee is a zombie until its tracer has reaped it. Its keeper, the real parent, waits for that. */
function reap(pid: number): void {
  if (pid !== 0) ptrace.wait(pid, reapTimeoutMs)
}

function dismiss(keeper: KeeperClient): void {
  if (keeper.status().state === 'none') keeper.quit()
  else keeper.kill()
  keeper.close()
}
