// test-group: pure

import { ptrace } from '@pageferry/kernel'
import t from 'tap'
import { signed } from '../src/remote/interrupted.js'
import { SYS } from '../src/remote/syscalls.js'
import { timeAddress, type Wait, waitOf, withRemaining } from '../src/remote/waits.js'
import { type Fields, registers } from './fixtures/registers.js'

const { REG } = ptrace
const restartBlock = -516
const again = -514
const second = 1_000_000_000n
const began = 100n * second
/** Below the red zone, 16 bytes aligned. */
const below = (0x7fff_0008n - 256n) & ~15n

/** The workload's memory: ten seconds at 0x5000, six at 0x6000. */
function read(address: bigint, length: number): Buffer {
  const bytes = Buffer.alloc(length)
  bytes.writeBigInt64LE(
    new Map([
      [0x5000n, 10n],
      [0x6000n, 6n],
    ]).get(address) ?? 0n,
  )
  return bytes
}

/** A wait of a thread that was stopped after three seconds. */
function find(nr: number, fields: Fields, isRepaired = false): Wait | null {
  const regs = registers({ orig_rax: nr, ...fields })
  return waitOf(regs, { nr, isRepaired, beganNs: began, stoppedNs: began + 3n * second }, read)
}

const inBlock = (nr: number, fields: Fields): Wait => find(nr, { rax: restartBlock, ...fields }) as Wait
const repaired = (nr: number, fields: Fields): Wait => find(nr, { rax: again, ...fields }, true) as Wait
const secondsOf = (wait: Wait) => (wait.deadlineNs === null ? null : Number(wait.deadlineNs - began) / 1e9)

t.test('calls whose deadline the kernel knows', async (t) => {
  const without = inBlock(SYS.nanosleep, { rdi: 0x5000 })
  t.equal(secondsOf(without), 10)
  t.equal(without.isInKernel, true)
  t.equal(without.regs[REG.rdi], below)
  t.equal(signed(without.regs[REG.rax]), -514n, 'started again, or EINTR if a handler runs')
  t.equal(without.regs[REG.orig_rax], BigInt(SYS.nanosleep))

  const withRest = inBlock(SYS.nanosleep, { rdi: 0x5000, rsi: 0x6000 })
  t.equal(secondsOf(withRest), 3 + 6, 'the kernel has written what remained at the stop')
  t.equal(withRest.regs[REG.rdi], below)
  t.equal(withRest.regs[REG.rsi], 0x6000n, 'where it writes again if a handler runs')

  const clock = inBlock(SYS.clock_nanosleep, { rdi: 1, rdx: 0x5000 })
  t.equal(secondsOf(clock), 10)
  t.equal(clock.regs[REG.rdx], below)
  t.equal(clock.regs[REG.rdi], 1n, 'the clock')
  t.equal(secondsOf(inBlock(SYS.clock_nanosleep, { rdx: 0x5000, r10: 0x6000 })), 9)
  for (const id of [2, 3, -6]) {
    const cpu = inBlock(SYS.clock_nanosleep, { rdi: id, rdx: 0x5000, r10: 0x6000 })
    t.equal(cpu.deadlineNs, null, 'processor time has no deadline')
    t.equal(cpu.regs[REG.rdx], 0x6000n)
  }

  t.equal(secondsOf(inBlock(SYS.poll, { rdx: 10_000 })), 10)
  t.equal(inBlock(SYS.poll, { rdx: 0xffff_ffff }).deadlineNs, null, 'without end')

  const futex = inBlock(SYS.futex, { rsi: 0x80, r10: 0x5000 })
  t.equal(secondsOf(futex), 10)
  t.equal(futex.regs[REG.r10], below)
  const bitset = inBlock(SYS.futex, { rsi: 0x80 | 0x100 | 9, r10: 0x5000 })
  t.equal(bitset.deadlineNs, null, 'FUTEX_WAIT_BITSET has an absolute timeout')
  t.equal(bitset.regs[REG.r10], 0x5000n)

  t.equal(signed(inBlock(SYS.mq_timedsend, {}).regs[REG.rax]), -4n, 'an unknown call gives EINTR')
  t.equal(find(SYS.nanosleep, { rax: again, rdi: 0x5000 }), null, 'an absolute sleep is right as it is')
  const stopped = registers({ orig_rax: SYS.restart_syscall, rax: restartBlock, rdi: 1, rdx: 0x5000 })
  const interruption = { nr: SYS.clock_nanosleep, isRepaired: false, beganNs: began, stoppedNs: began }
  t.equal(
    waitOf(stopped, interruption, read)?.regs[REG.orig_rax],
    BigInt(SYS.clock_nanosleep),
    'not restart_syscall, which is not known there',
  )
})

t.test('calls that never restart', async (t) => {
  const signal = repaired(SYS.rt_sigtimedwait, { rdx: 0x5000 })
  t.equal(secondsOf(signal), 10)
  t.equal(signal.isInKernel, false)
  t.equal(signal.regs[REG.rdx], below)
  t.equal(repaired(SYS.rt_sigtimedwait, { rdx: 0 }).deadlineNs, null, 'no timeout')
  t.equal(secondsOf(repaired(SYS.epoll_wait, { r10: 5000 })), 5)
  t.equal(repaired(SYS.epoll_wait, { r10: -1 }).deadlineNs, null, 'for ever')
  t.equal(secondsOf(repaired(SYS.ppoll, { rdx: 0x5000 })), 10, 'a timeout that could not be written')
})

t.test('calls whose timeout the kernel has written over', async (t) => {
  const poll = find(SYS.ppoll, { rax: again, rdx: 0x6000 }) as Wait
  t.equal(secondsOf(poll), 3 + 6)
  t.equal(poll.isInKernel, false)
  t.equal(poll.regs[REG.rdx], 0x6000n, 'the program may look at it afterwards')
  t.equal(secondsOf(find(SYS.pselect6, { rax: again, r8: 0x6000 }) as Wait), 9)
  t.equal(secondsOf(find(SYS.select, { rax: again, r8: 0x6000 }) as Wait), 9)
  t.equal(find(SYS.select, { rax: again, r8: 0 }), null, 'without end')
})

t.test('what remains', async (t) => {
  const time = (nr: number, register: ptrace.RegisterName, ns: bigint) => {
    const regs = registers({ orig_rax: nr, rax: again, [register]: 0x5000 })
    const { time } = withRemaining(regs, began + ns, began)
    t.equal(time?.address, 0x5000n)
    t.equal(timeAddress(regs), 0x5000n)
    return [time?.bytes.readBigInt64LE(0), time?.bytes.readBigInt64LE(8)]
  }
  t.same(time(SYS.ppoll, 'rdx', 7_000_000_001n), [7n, 1n])
  t.same(time(SYS.select, 'r8', 7_000_000_001n), [7n, 1n], 'microseconds, never shorter')
  t.same(time(SYS.select, 'r8', 999_999_001n), [1n, 0n])
  t.same(time(SYS.nanosleep, 'rdi', -60n * second), [0n, 1n], 'overdue: at once, but not for ever')

  const ms = (nr: number, register: ptrace.RegisterName, ns: bigint) => {
    const regs = registers({ orig_rax: nr, rax: again })
    t.equal(timeAddress(regs), null)
    return withRemaining(regs, began + ns, began).regs[REG[register]]
  }
  t.equal(ms(SYS.poll, 'rdx', 7n * second), 7000n)
  t.equal(ms(SYS.poll, 'rdx', 7_000_000_001n), 7001n, 'never shorter')
  t.equal(ms(SYS.epoll_wait, 'r10', -second), 1n, 'over, but still a wait')
})
