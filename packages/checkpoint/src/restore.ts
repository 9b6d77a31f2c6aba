import { closeSync } from 'node:fs'
import { addressOf, PageferryError, pageBytes } from '@pageferry/base'
import type { TaskCoreEntry } from '@pageferry/images'
import { fds, type KeeperClient, memory, ptrace, uffd } from '@pageferry/kernel'
import type { AreaMap, PageSet } from '@pageferry/pages'
import type { Freezer } from './freezer.js'
import { restoreAddressSpace, restoreDumpable, restoreFutureLocks } from './kinds/address-space.js'
import { restoreKeyrings } from './kinds/attributes/keyrings.js'
import { restoreLoginUid } from './kinds/attributes/login-uid.js'
import { restoreAreaPolicies } from './kinds/attributes/memory-policy.js'
import { restoreCredentials } from './kinds/credentials.js'
import { restoreDescriptors } from './kinds/descriptors/table.js'
import { restoreFs } from './kinds/fs.js'
import { defaultGhostBytes } from './kinds/ghosts/check.js'
import { GhostFiles } from './kinds/ghosts/ghost-files.js'
import { guardsFromVmas } from './kinds/guard-regions.js'
import { SkeletonMap } from './kinds/memory-map/apply.js'
import { restoreAreaNames } from './kinds/memory-map/names.js'
import { areasFromVmas } from './kinds/memory-map/vmas.js'
import {
  restoreComm,
  restoreFromOutside,
  restoreLimits,
  restoreProcessAttributes,
  restoreProcessState,
  restoreSignalLimit,
  restoreStop,
} from './kinds/process-state.js'
import { restorePendingSignals, restoreSignalActions } from './kinds/signals.js'
import {
  type RestoredThread,
  renewWaits,
  restoreDeathSignal,
  restoreRegisters,
  restoreScheduling,
  restoreThreadState,
} from './kinds/threads.js'
import { signalsOfTimers } from './kinds/timer-overruns.js'
import { restoreTimers } from './kinds/timers.js'
import type { Problem } from './problems.js'
import { isPagePresent } from './proc/page-present.js'
import { readStatus } from './proc/status.js'
import type { ProcessImages } from './process-images.js'
import { SkeletonProcess, skeletonScratchPages } from './remote/skeleton-process.js'
import { SYS } from './remote/syscalls.js'
import { scanPresent } from './trackers/open.js'

const { REG } = ptrace

const { O_CLOEXEC, O_NONBLOCK } = fds
const allSignals = 0xffff_ffff_ffff_ffffn
const syscallTimeoutMs = 10_000
/** Events that the workload causes while it runs on lazy memory. All must be requested and served. */
const uffdFeatures =
  uffd.UFFD_FEATURE_EVENT_FORK |
  uffd.UFFD_FEATURE_EVENT_REMAP |
  uffd.UFFD_FEATURE_EVENT_REMOVE |
  uffd.UFFD_FEATURE_EVENT_UNMAP |
  uffd.UFFD_FEATURE_THREAD_ID

/** Bounds the report that a peer can cause. */
const maxNotMoved = 1000

/** Results of `beginState` for `finishState`. */
interface BegunState {
  task: TaskCoreEntry
  threads: RestoredThread[]
}

/**
 * Builds the workload out of a skeleton, in the order in which its parts depend on each other. Until `release` the
 * skeleton is traced with EXITKILL: if anything fails, or this process dies, nothing of it remains.
 */
export class Restorer {
  readonly skeleton: SkeletonProcess
  readonly uffd: number
  readonly map: SkeletonMap
  /** Files that have no name any more: filled before `beginState`. */
  readonly ghosts: GhostFiles
  /** The workload's own pid, in its pid namespace. */
  readonly nsPid: number
  /** Parts that the process has lost, with reasons. */
  readonly notMoved: Problem[] = []
  #begun: BegunState | null = null

  private constructor(skeleton: SkeletonProcess, uffdFd: number, nsPid: number, ghostBytes: number) {
    this.skeleton = skeleton
    this.uffd = uffdFd
    this.nsPid = nsPid
    this.ghosts = new GhostFiles(skeleton, ghostBytes)
    this.map = new SkeletonMap(skeleton, uffdFd, this.ghosts)
  }

  /**
   * Spawns the skeleton under its keeper and takes it over. Makes its userfaultfd while it is still root.
   *
   * @param ghostBytes limit of the data in files that have no name any more
   */
  static create(keeper: KeeperClient, nsPid: number, ghostBytes = defaultGhostBytes): Restorer {
    const [ours, theirs] = fds.socketpair(fds.SOCK_SEQPACKET)
    let spawned: ReturnType<KeeperClient['spawn']>
    try {
      spawned = keeper.spawn({ pid: nsPid, socketFd: theirs })
    } catch (error) {
      closeSync(ours)
      if ((error as { code?: string }).code === 'EEXIST') {
        throw new PageferryError(
          'REFUSED',
          `pid ${nsPid} is taken on the destination: use --new-pid-namespace, or end that process`,
          { cause: error },
        )
      }
      throw error
    } finally {
      closeSync(theirs)
    }
    fds.recv(ours, 1, 0, syscallTimeoutMs) // the program reports that it runs
    const skeleton = SkeletonProcess.take(spawned.pid, spawned.pidfd, ours)
    const remote = Number(skeleton.call('userfaultfd', O_CLOEXEC | O_NONBLOCK))
    const uffdFd = fds.pidfdGetfd(spawned.pidfd, remote)
    skeleton.call('close', remote)
    uffd.api(uffdFd, uffdFeatures)
    return new Restorer(skeleton, uffdFd, nsPid, ghostBytes)
  }

  get pid(): number {
    return this.skeleton.pid
  }

  /** Changes the memory map to that of the images. */
  applyMap(images: ProcessImages): AreaMap {
    const target = areasFromVmas(images.mm(this.nsPid).vmas, images.files(), images.ghostIds())
    this.map.apply(target)
    return target
  }

  /** Pages that are present in the skeleton and do not belong to a file, by the page tables. */
  presentPages(): PageSet {
    const { map } = this.map
    const { present, doubtful } = scanPresent(this.pid, map)
    return present.union(doubtful).union(map.pages(({ kind }) => kind === 'shared-anon'))
  }

  /**
   * Restores state that does not depend on the contents of the memory: threads, descriptors, and state of the whole
   * process. So it runs while the source finds and sends the last pages. The memory map must be the final one.
   */
  beginState(images: ProcessImages): void {
    const { skeleton } = this
    const tree = images.pstree()
    const leader = images.core(this.nsPid)
    if (leader.tc === undefined) throw new PageferryError('PROTOCOL', 'the core image lacks the task')
    const files = images.files()
    const mm = images.mm(this.nsPid)

    ptrace.setSigmask(this.pid, allSignals)
    restoreKeyrings(skeleton)
    restoreLoginUid(skeleton, leader.tc.loginuid, this.#tell)
    const threads: RestoredThread[] = []
    for (const nsTid of tree.threads) {
      const core = nsTid === this.nsPid ? leader : images.core(nsTid)
      const tid = nsTid === this.nsPid ? this.pid : skeleton.createThread(nsTid)
      ptrace.setSigmask(tid, allSignals)
      threads.push({ tid, nsTid, core })
    }
    const tids = new Map(threads.map(({ nsTid, tid }) => [nsTid, tid]))
    const fdinfo = images.fdinfo(leader.ids?.filesId ?? 1)
    this.ghosts.finish(leader.threadCore?.creds, this.#tell)
    const ghostIds = images.ghostIds()
    const openGhost = (id: number, flags: number): number | undefined => {
      const ghost = ghostIds.get(id)
      return ghost === undefined ? undefined : this.ghosts.open(ghost, flags)
    }
    // Calls queued in the skeleton run together, thread by thread: each run costs two stops.
    restoreAddressSpace(skeleton, mm, files, openGhost)
    // Before the descriptors, which leave no number free for a directory that has no name.
    restoreFs(skeleton, images.fs(this.nsPid), files, openGhost)
    restoreDescriptors(skeleton, fdinfo, images, tids, { openGhost })
    this.ghosts.close()
    restoreProcessState(skeleton, leader.tc)
    restoreSignalActions(skeleton, leader.tc.sigactions)
    skeleton.flush()
    this.#begun = { task: leader.tc, threads }
  }

  /**
   * Restores the state that `beginState` leaves, when all pages are installed. The kernel touches some pages (TLS,
   * rseq) for these calls, and this process cannot serve a fault that it causes itself. Guard regions may have become
   * known since.
   *
   * This is no list of kinds, because kinds interleave. A call must come before another call that removes its
   * precondition:
   *
   *   guards, then locks        a guard cannot be put into a locked area
   *   locks of the future       after this nothing may be mapped for ourselves
   *   process attributes        after this nothing may become executable
   *   limits                    the memory is mapped and locked by now, and the thread is still privileged
   *   thread state              before credentials, which may remove the right to set it
   *   death signal, dumpable    after credentials, which reset them
   *   pending signals           after everything that a signal could interrupt
   *   timers                    last of the calls: the time of the restore counts against none
   *   registers                 after the last call that a thread makes
   *   job control's stop        last of all: a thread with a pending SIGSTOP can do nothing more
   */
  finishState(images: ProcessImages): void {
    const { skeleton } = this
    if (this.#begun === null) throw new PageferryError('INTERNAL', 'the state was not begun')
    const { task, threads } = this.#begun
    const mm = images.mm(this.nsPid)
    this.map.finish(guardsFromVmas(mm.vmas, this.map.map))
    restoreAreaNames(skeleton, this.map.map, this.#tell)
    restoreAreaPolicies(skeleton, mm.memoryPolicies, this.#tell)
    restoreFutureLocks(skeleton, mm)
    restoreProcessAttributes(skeleton, task, this.#tell)
    restoreLimits(skeleton, task)
    const own = readStatus(this.pid)
    for (const thread of threads) {
      const { tid, core } = thread
      restoreThreadState(skeleton, thread, this.#tell)
      if (core.threadCore?.creds !== undefined) restoreCredentials(skeleton, tid, core.threadCore.creds, own)
      restoreDeathSignal(skeleton, tid, core)
      restoreComm(skeleton, tid, core.threadCore?.comm ?? task.comm)
    }
    restoreDumpable(skeleton, mm)
    const queues = [...threads.map(({ core }) => core.threadCore?.signalsP), task.signalsS]
    const ofTimers = signalsOfTimers(task.timers?.posix ?? [], queues)
    for (const { tid, nsTid, core } of threads) {
      const target = { tid, nsTid, nsPid: this.nsPid, shared: false }
      restorePendingSignals(skeleton, core.threadCore?.signalsP, target, ofTimers.signals)
    }
    const theProcess = { tid: this.pid, nsTid: 0, nsPid: this.nsPid, shared: true }
    restorePendingSignals(skeleton, task.signalsS, theProcess, ofTimers.signals)
    if (task.timers !== undefined) restoreTimers(skeleton, this.nsPid, task.timers, ofTimers.overruns)
    restoreSignalLimit(skeleton, task)
    this.#leaveScratch()
    for (const thread of threads) restoreScheduling(this.pid, thread, this.#tell)
    restoreFromOutside(this.pid, task, this.#tell)
    for (const { tid, core } of threads) restoreRegisters(tid, core)
    restoreStop(
      this.pid,
      threads.map(({ tid }) => tid),
      task,
    )
  }

  #tell = (lost: Problem): void => {
    if (this.notMoved.length < maxNotMoved) this.notMoved.push(lost)
  }

  /** Unmaps the scratch area last. The call that unmaps it runs in the vdso. */
  #leaveScratch(): void {
    const { skeleton } = this
    skeleton.flush()
    const regs = ptrace.getRegs(this.pid)
    regs[REG.orig_rax] = BigInt.asUintN(64, -1n)
    regs[REG.rip] = this.#findSyscallInstruction()
    regs[REG.rax] = BigInt(SYS.munmap)
    regs[REG.rdi] = addressOf(skeleton.scratchPage)
    regs[REG.rsi] = BigInt(skeletonScratchPages * pageBytes)
    ptrace.setRegs(this.pid, regs)
    const { result } = ptrace.syscallStep(this.pid, syscallTimeoutMs)
    if (result !== 0n)
      throw new PageferryError('KERNEL', `munmap of the scratch area failed with errno ${-result}`)
  }

  #findSyscallInstruction(): bigint {
    const vdso = this.map.map.areas.find((area) => area.kind === 'vdso')
    if (vdso !== undefined) {
      const code = Buffer.alloc(vdso.nrPages * pageBytes)
      memory.pread(this.skeleton.memFd, addressOf(vdso.start), code)
      const at = code.indexOf(Buffer.from([0x0f, 0x05]))
      if (at >= 0) return addressOf(vdso.start) + BigInt(at)
    }
    throw new PageferryError('UNSUPPORTED_HOST', 'the vdso has no syscall instruction')
  }

  /** Ends the tracing of the skeleton, which its own cgroup keeps frozen. From here only a thaw makes it run. */
  release(freezer: Freezer): void {
    if (!freezer.isFrozen()) throw new PageferryError('INTERNAL', 'a skeleton that is not frozen is released')
    const threads = this.#begun?.threads ?? []
    // The commit may have come long after the state was restored.
    renewWaits(
      this.skeleton,
      threads,
      (page) => !this.map.registered.has(page) || isPagePresent(this.pid, page),
    )
    for (const { tid } of threads) ptrace.setOptions(tid, 0)
    for (const { tid } of threads) ptrace.detach(tid, 0)
  }
}
