import { isKernelError } from '@pageferry/base'
import { eventually } from '@pageferry/testing/eventually'
import { adopt, currentSyscall, isAlive, kill, SYS } from '@pageferry/testing/processes'
import { startTarget, type Target } from '@pageferry/testing/target'
import t, { type Test } from 'tap'
import { memory, processes, ptrace } from '../src/index.js'

const { REG } = ptrace
const timeoutMs = 5000
const SIGTRAP = 5
const SIGSTOP = 19
const SIGCONT = 18

/** Kills a target and takes its end, which a later waitAny would see otherwise. */
function end(pid: number): void {
  kill(pid)
  try {
    while (ptrace.wait(pid, timeoutMs).kind === 'stopped');
  } catch (error) {
    // It was detached, or its end was taken before.
    if (!isKernelError(error, 'ECHILD')) throw error
  }
}

/** Starts a target and stops it. */
async function stopped(t: Test, options: number = ptrace.PTRACE_O_TRACESYSGOOD): Promise<Target> {
  const target = await startTarget()
  t.teardown(() => end(target.pid))
  ptrace.seize(target.pid, options)
  ptrace.interrupt(target.pid)
  const status = ptrace.wait(target.pid, timeoutMs)
  t.strictSame(status, { kind: 'stopped', signal: SIGTRAP, event: ptrace.PTRACE_EVENT_STOP, syscall: false })
  return target
}

/** Lets the target go on at `rip`; orig_rax = -1 keeps the kernel from restarting the interrupted pause. */
function jump(target: Target, rip: bigint, changes: Partial<Record<ptrace.RegisterName, bigint>> = {}) {
  const saved = ptrace.getRegs(target.pid)
  const regs = saved.slice()
  regs[REG.rip] = rip
  regs[REG.orig_rax] = 0xffff_ffff_ffff_ffffn
  for (const [name, value] of Object.entries(changes)) regs[REG[name as ptrace.RegisterName]] = value
  ptrace.setRegs(target.pid, regs)
  return saved
}

function thrown(call: () => unknown): unknown {
  try {
    call()
  } catch (error) {
    return error
  }
  throw new Error('it did not throw')
}

function kernelError(t: Test, code: string, syscall: string, call: () => unknown): void {
  const error = thrown(call)
  t.ok(isKernelError(error, code), `${syscall}: ${code}`)
  t.match(error, { code, syscall, errno: Number })
}

t.test(
  'a stopped process shows the system call that it was interrupted in, and goes on with it',
  async (t) => {
    const target = await stopped(t)
    const regs = ptrace.getRegs(target.pid)
    t.equal(regs.length, 27)
    t.equal(regs[REG.orig_rax], BigInt(SYS.pause))
    t.equal(BigInt.asIntN(64, regs[REG.rax]), -514n, 'ERESTARTNOHAND')
    t.not(regs[REG.fs_base], 0n)
    ptrace.detach(target.pid)
    await eventually('it sleeps again', () => currentSyscall(target.pid) === SYS.pause)
  },
)

t.test('registers survive a round trip', async (t) => {
  const target = await stopped(t)
  const saved = ptrace.getRegs(target.pid)
  const changed = saved.slice()
  changed[REG.r15] = 0xfedc_ba98_7654_3210n
  changed[REG.r8] = 0xffff_ffff_ffff_ffffn
  ptrace.setRegs(target.pid, changed)
  t.strictSame(ptrace.getRegs(target.pid), changed)
  ptrace.setRegs(target.pid, saved)
  t.strictSame(ptrace.getRegs(target.pid), saved)
  t.throws(() => ptrace.setRegs(target.pid, saved.subarray(1)), TypeError)
})

t.test('the program sees the vector registers that were set', async (t) => {
  const target = await stopped(t)
  const xstate = ptrace.getXstate(target.pid)
  t.equal(xstate.length, processes.cpuXfeatures().size)
  // XSAVE format: the SSE registers start at byte 160; XSTATE_BV at 512 says which components are not initial.
  const changed = xstate.slice()
  const view = new DataView(changed.buffer)
  view.setBigUint64(160, 0x0123_4567_89ab_cdefn, true)
  view.setBigUint64(512, view.getBigUint64(512, true) | 2n, true)
  ptrace.setXstate(target.pid, changed)
  t.strictSame(ptrace.getXstate(target.pid), changed)
  // movq %xmm0, %rax; int3
  memory.writeBytes(target.pid, target.code + 16n, Uint8Array.of(0x66, 0x48, 0x0f, 0x7e, 0xc0, 0xcc))
  const saved = jump(target, target.code + 16n)
  ptrace.runToTrap(target.pid, timeoutMs)
  t.equal(ptrace.getRegs(target.pid)[REG.rax], 0x0123_4567_89ab_cdefn)
  ptrace.setRegs(target.pid, saved)
  ptrace.setXstate(target.pid, xstate)
  t.strictSame(ptrace.getXstate(target.pid), xstate)
  kernelError(t, 'EFAULT', 'ptrace(PTRACE_SETREGSET, NT_X86_XSTATE)', () =>
    ptrace.setXstate(target.pid, xstate.subarray(64)),
  )
})

t.test('syscallStep runs one injected system call, often, and the program does not notice', async (t) => {
  const target = await stopped(t)
  const saved = ptrace.getRegs(target.pid)
  for (let i = 0; i < 100; i++) {
    jump(target, target.code, { rax: BigInt(SYS.getpid) })
    const step = ptrace.syscallStep(target.pid, timeoutMs)
    if (i === 0) t.strictSame(step, { nr: SYS.getpid, result: BigInt(target.pid) })
  }
  t.equal(ptrace.getRegs(target.pid)[REG.rip], target.code + 2n, 'behind the instruction')
  jump(target, target.code, { rax: 5000n })
  t.strictSame(ptrace.syscallStep(target.pid, timeoutMs), { nr: 5000, result: -38n }, 'ENOSYS')
  ptrace.setRegs(target.pid, saved)
  ptrace.detach(target.pid)
  await eventually('it sleeps again', () => currentSyscall(target.pid) === SYS.pause)
})

t.test('an unexpected stop says what it was', async (t) => {
  const target = await stopped(t, ptrace.PTRACE_O_TRACESYSGOOD | ptrace.PTRACE_O_TRACEFORK)
  memory.writeBytes(target.pid, target.code + 32n, Uint8Array.of(0xcc, 0x0f, 0x0b)) // int3; ud2
  jump(target, target.code + 32n)
  const trap = thrown(() => ptrace.syscallStep(target.pid, timeoutMs))
  t.ok(ptrace.isUnexpectedStop(trap))
  t.ok(isKernelError(trap, 'EINTR'))
  t.match(trap, { syscall: 'ptrace(PTRACE_SYSCALL)', pid: target.pid, stopSignal: SIGTRAP, stopEvent: 0 })
  const illegal = thrown(() => ptrace.runToTrap(target.pid, timeoutMs))
  t.match(illegal, { code: 'EINTR', syscall: 'ptrace(PTRACE_CONT)', stopSignal: 4, stopEvent: 0 })
  const siginfo = new DataView(ptrace.getSiginfo(target.pid).buffer)
  t.equal(siginfo.byteLength, 128)
  t.equal(siginfo.getInt32(0, true), 4, 'si_signo')
  t.equal(siginfo.getBigUint64(16, true), target.code + 33n, 'si_addr')

  // The kernel reports the new child before the system call's exit.
  jump(target, target.code, { rax: BigInt(SYS.fork) })
  const forked = thrown(() => ptrace.syscallStep(target.pid, timeoutMs))
  t.match(forked, { code: 'EINTR', stopSignal: SIGTRAP, stopEvent: ptrace.PTRACE_EVENT_FORK })
  const child = Number(ptrace.getEventMessage(target.pid))
  adopt(child)
  t.match(ptrace.wait(child, timeoutMs), { kind: 'stopped', event: ptrace.PTRACE_EVENT_STOP })
  kill(child)
  t.strictSame(ptrace.wait(child, timeoutMs), { kind: 'signaled', signal: 9 })

  // It is still inside of fork, and then the child's SIGCHLD is delivered: neither is what was asked for.
  const exit = thrown(() => ptrace.syscallStep(target.pid, timeoutMs))
  t.match(exit, { code: 'EINTR', stopSignal: SIGTRAP, status: { syscall: true } })
  t.equal(ptrace.getRegs(target.pid)[REG.rax], BigInt(child))
  jump(target, target.code, { rax: BigInt(SYS.exit_group), rdi: 7n })
  const signal = thrown(() => ptrace.syscallStep(target.pid, timeoutMs))
  t.match(signal, { code: 'EINTR', stopSignal: 17, stopEvent: 0 })
  const gone = thrown(() => ptrace.syscallStep(target.pid, timeoutMs))
  t.match(gone, { code: 'EINTR', stopSignal: 0, stopEvent: 0, status: { kind: 'exited', code: 7 } })
  t.notOk(isAlive(target.pid))
})

t.test('signals: mask, pending for the process and for the thread', async (t) => {
  const target = await stopped(t)
  const bit = (signal: number) => 1n << BigInt(signal - 1)
  const mask = ptrace.getSigmask(target.pid)
  t.equal(mask, bit(10) | bit(target.sigrt))
  ptrace.setSigmask(target.pid, mask | bit(64))
  t.equal(ptrace.getSigmask(target.pid), mask | bit(64))
  ptrace.setSigmask(target.pid, mask)

  const field = (bytes: Uint8Array, at: number) => new DataView(bytes.buffer).getInt32(at, true)
  const shared = ptrace.peekSiginfo(target.pid, true)
  t.equal(shared.length, 40, 'more than one batch')
  t.strictSame(
    shared.map((info) => [field(info, 0), field(info, 8), field(info, 24)]),
    Array.from({ length: 40 }, (_, i) => [target.sigrt, -1, 4711 + i]),
    'si_signo, SI_QUEUE, si_value',
  )
  const own = ptrace.peekSiginfo(target.pid, false)
  t.strictSame(
    own.map((info) => field(info, 24)),
    [99],
  )
  t.strictSame(ptrace.peekSiginfo(target.pid, true), shared, 'nothing is consumed')
})

t.test('rseq configuration', async (t) => {
  const target = await stopped(t)
  const rseq = ptrace.getRseqConfiguration(target.pid)
  // glibc registers since 2.35, with the signature of x86's ud1 (sysdeps/x86/bits/rseq.h).
  t.match(rseq, { size: 32, signature: 0x53053053, flags: 0 })
  t.ok(rseq.address > 0n)
})

t.test('group stop, listen and single steps', async (t) => {
  const target = await stopped(t)
  process.kill(target.pid, 'SIGSTOP')
  ptrace.resume(target.pid, 'cont')
  t.match(ptrace.wait(target.pid, timeoutMs), { signal: SIGSTOP, event: 0 }, 'signal delivery')
  ptrace.resume(target.pid, 'cont', SIGSTOP)
  t.match(ptrace.wait(target.pid, timeoutMs), { signal: SIGSTOP, event: ptrace.PTRACE_EVENT_STOP })
  ptrace.resume(target.pid, 'listen')
  kernelError(t, 'ESRCH', 'ptrace(PTRACE_GETSIGINFO)', () => ptrace.getSiginfo(target.pid))
  t.equal(ptrace.waitAny(50), null, 'stays stopped')
  process.kill(target.pid, 'SIGCONT')
  t.match(ptrace.waitAny(timeoutMs), { tid: target.pid, signal: SIGTRAP, event: ptrace.PTRACE_EVENT_STOP })
  ptrace.resume(target.pid, 'cont')
  t.match(ptrace.waitAny(timeoutMs), { tid: target.pid, signal: SIGCONT, event: 0 })

  memory.writeBytes(target.pid, target.code + 48n, Uint8Array.of(0x90, 0x90, 0x90))
  jump(target, target.code + 48n)
  ptrace.resume(target.pid, 'singlestep')
  t.match(ptrace.wait(target.pid, timeoutMs), { signal: SIGTRAP, event: 0, syscall: false })
  t.equal(ptrace.getRegs(target.pid)[REG.rip], target.code + 49n)
  jump(target, target.code, { rax: BigInt(SYS.getpid) })
  ptrace.resume(target.pid, 'syscall')
  t.match(ptrace.wait(target.pid, timeoutMs), { signal: SIGTRAP, syscall: true })
})

t.test('errors', async (t) => {
  const target = await startTarget()
  const { pid } = target
  t.teardown(() => end(pid))
  kernelError(t, 'ECHILD', 'waitpid', () => ptrace.wait(pid, 100))
  kernelError(t, 'ESRCH', 'ptrace(PTRACE_GETREGSET)', () => ptrace.getRegs(pid))
  kernelError(t, 'ESRCH', 'ptrace(PTRACE_SEIZE)', () => ptrace.seize(0x7fff_ffff, 0))
  ptrace.seize(pid, 0)
  kernelError(t, 'EPERM', 'ptrace(PTRACE_SEIZE)', () => ptrace.seize(pid, 0))
  const start = process.hrtime.bigint()
  kernelError(t, 'ETIMEDOUT', 'waitpid', () => ptrace.wait(pid, 30))
  const spentMs = Number(process.hrtime.bigint() - start) / 1e6
  t.ok(spentMs >= 30 && spentMs < 1000, `${spentMs} ms`)
  kernelError(t, 'ESRCH', 'ptrace(PTRACE_CONT)', () => ptrace.resume(pid, 'cont'))
  ptrace.interrupt(pid)
  ptrace.wait(pid, timeoutMs)
  kernelError(t, 'EINVAL', 'ptrace(PTRACE_SETOPTIONS)', () => ptrace.setOptions(pid, 0x4000_0000))
  ptrace.setOptions(pid, ptrace.PTRACE_O_EXITKILL)
  t.throws(() => ptrace.resume(pid, 'sideways' as 'cont'), TypeError)
  t.throws(() => ptrace.seize(1.5, 0), TypeError)
})
