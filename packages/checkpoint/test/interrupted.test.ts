import { readFileSync } from 'node:fs'
import { processes, ptrace } from '@pageferry/kernel'
import { eventually } from '@pageferry/testing/eventually'
import { kill, startSubject } from '@pageferry/testing/processes'
import t from 'tap'
import {
  lastProcessor,
  repairSpuriousEintr,
  rewound,
  SchedulerClocks,
  schedulerFacts,
  signed,
  withRemainingTime,
  withRemainingWait,
} from '../src/remote/interrupted.js'
import { SYS } from '../src/remote/syscalls.js'
import { compile } from './fixtures/start.js'

const { REG } = ptrace
const restartBlock = -516n
const second = 1_000_000_000n

type Fields = Partial<Record<ptrace.RegisterName, bigint | number>>

function registers(fields: Fields): BigUint64Array {
  const regs = new BigUint64Array(27)
  regs[REG.rip] = 0x40_1000n
  regs[REG.rsp] = 0x7fff_0008n
  for (const [name, value] of Object.entries(fields)) {
    regs[REG[name as ptrace.RegisterName]] = BigInt.asUintN(64, BigInt(value))
  }
  return regs
}

t.test('a call that is started again: rewound for the user, left to the kernel otherwise', async (t) => {
  for (const error of [-512, -513, -514]) {
    const found = registers({ orig_rax: SYS.pause, rax: error })
    const user = rewound(found)
    t.equal(user[REG.rip], 0x40_0ffen)
    t.equal(user[REG.rax], BigInt(SYS.pause))
    t.equal(signed(user[REG.orig_rax]), -1n, 'the kernel is not to restart it once more')
    t.same(repairSpuriousEintr(found, false), found, 'the kernel does it by itself')
  }
  const sleeping = rewound(registers({ orig_rax: SYS.nanosleep, rax: restartBlock }))
  t.equal(sleeping[REG.rax], BigInt(SYS.restart_syscall), 'the kernel knows the deadline')
  t.equal(sleeping[REG.rip], 0x40_0ffen)
  const running = registers({ orig_rax: -1, rax: -512 })
  t.equal(rewound(running)[REG.rip], running[REG.rip], 'a value in rax that is not the end of a call')
  const done = registers({ orig_rax: SYS.read, rax: 5 })
  t.equal(rewound(done)[REG.rip], done[REG.rip])
  t.equal(rewound(done)[REG.rax], 5n)
})

t.test('EINTR that only our stop has caused', async (t) => {
  const found = registers({ orig_rax: SYS.epoll_wait, rax: -4 })
  t.equal(signed(repairSpuriousEintr(found, false)[REG.rax]), -514n)
  t.equal(signed(repairSpuriousEintr(found, true)[REG.rax]), -4n, 'a signal is there: EINTR is right')
  t.equal(signed(found[REG.rax]), -4n, 'the argument stays')
  const read = registers({ orig_rax: SYS.read, rax: -4 })
  t.equal(
    signed(repairSpuriousEintr(read, false)[REG.rax]),
    -4n,
    'a call that restarts by itself has its own reason',
  )
})

t.test('what remains of a relative timeout', async (t) => {
  const read = (address: bigint): bigint => {
    t.equal(address, 0x5000n)
    return 10n * second
  }
  const move = (nr: number, fields: Fields, elapsed = 3n * second) =>
    withRemainingTime(registers({ orig_rax: nr, rax: restartBlock, ...fields }), nr, elapsed, read)
  // Below the red zone, 16 bytes aligned.
  const below = (0x7fff_0008n - 256n) & ~15n

  const without = move(SYS.nanosleep, { rdi: 0x5000 })
  t.same(without.timespec, { address: below, ns: 7n * second })
  t.equal(without.regs[REG.rdi], below)
  t.equal(signed(without.regs[REG.rax]), -514n, 'started again, or EINTR if a handler runs')
  t.equal(without.regs[REG.orig_rax], BigInt(SYS.nanosleep))

  const withRemainder = move(SYS.nanosleep, { rdi: 0x5000, rsi: 0x6000 })
  t.equal(withRemainder.timespec, undefined)
  t.equal(withRemainder.regs[REG.rdi], 0x6000n, 'the kernel has written it there')

  const clock = move(SYS.clock_nanosleep, { rdi: 1, rdx: 0x5000 })
  t.same(clock.timespec, { address: below, ns: 7n * second })
  t.equal(clock.regs[REG.rdx], below)
  t.equal(clock.regs[REG.rdi], 1n, 'the clock')
  t.equal(move(SYS.clock_nanosleep, { rdx: 0x5000, r10: 0x6000 }).regs[REG.rdx], 0x6000n)

  t.equal(move(SYS.poll, { rdx: 10_000 }).regs[REG.rdx], 7000n)
  t.equal(move(SYS.poll, { rdx: 10_000 }, 2_999_000_001n).regs[REG.rdx], 7001n, 'never shorter')
  t.equal(move(SYS.poll, { rdx: 0xffff_ffff }).regs[REG.rdx], 0xffff_ffffn, 'without end')

  const futex = move(SYS.futex, { rsi: 0x80, r10: 0x5000 })
  t.same(futex.timespec, { address: below, ns: 7n * second })
  t.equal(futex.regs[REG.r10], below)
  const bitset = move(SYS.futex, { rsi: 0x80 | 0x100 | 9, r10: 0x5000 })
  t.equal(bitset.timespec, undefined, 'FUTEX_WAIT_BITSET has an absolute timeout')
  t.equal(bitset.regs[REG.r10], 0x5000n)

  t.equal(
    move(SYS.nanosleep, { rdi: 0x5000 }, 60n * second).timespec?.ns,
    1n,
    'overdue: at once, but not for ever',
  )
  t.equal(signed(move(SYS.mq_timedsend, {}).regs[REG.rax]), -4n, 'an unknown call gives EINTR')

  const other = registers({ orig_rax: SYS.nanosleep, rax: -514 })
  t.same(withRemainingTime(other, SYS.nanosleep, 0n, read), { regs: other }, 'only -516 needs it')
  const restarted = withRemainingTime(
    registers({ orig_rax: SYS.restart_syscall, rax: restartBlock, rdi: 1, rdx: 0x5000 }),
    SYS.clock_nanosleep,
    3n * second,
    read,
  )
  t.equal(
    restarted.regs[REG.orig_rax],
    BigInt(SYS.clock_nanosleep),
    'not restart_syscall, which is not known there',
  )
})

t.test('calls that never restart are given the time that remains', async (t) => {
  const again = -514
  const wait = (nr: number, fields: Fields) =>
    withRemainingWait(registers({ orig_rax: nr, rax: again, ...fields }), 3n * second, (address) => {
      t.equal(address, 0x5000n)
      return 10n * second
    })
  const signal = wait(SYS.rt_sigtimedwait, { rdx: 0x5000 })
  const below = (0x7fff_0008n - 256n) & ~15n
  t.same(signal.timespec, { address: below, ns: 7n * second })
  t.equal(signal.regs[REG.rdx], below)
  t.equal(wait(SYS.rt_sigtimedwait, { rdx: 0 }).timespec, undefined, 'no timeout')
  t.equal(wait(SYS.epoll_wait, { r10: 5000 }).regs[REG.r10], 2000n)
  t.equal(wait(SYS.epoll_wait, { r10: 100 }).regs[REG.r10], 1n, 'over, but still a wait')
  t.equal(wait(SYS.epoll_wait, { r10: -1 }).regs[REG.r10], BigInt.asUintN(64, -1n), 'for ever')
  t.equal(wait(SYS.nanosleep, { rdi: 0x5000 }).timespec, undefined, 'the kernel knows')
})

t.test('when a sleep began, on each processor', async (t) => {
  const allowed = processes.getAffinity(0)
  const now = () => processes.clockGettime(processes.CLOCK_MONOTONIC)
  const clocks = new SchedulerClocks()
  for (let processor = 0; processor < Math.min(4, allowed.length * 8); processor++) {
    if ((allowed[processor >> 3] & (1 << (processor & 7))) === 0) continue
    const before = now()
    const { pid } = await startSubject([
      'taskset',
      '-c',
      String(processor),
      compile('waiter'),
      'nanosleep',
      '60000',
    ])
    t.teardown(() => kill(pid))
    await eventually('it sleeps', () =>
      readFileSync(`/proc/${pid}/syscall`, 'utf8').startsWith(`${SYS.nanosleep} `),
    )
    const asleep = now()
    t.equal(lastProcessor(`/proc/${pid}`), processor)
    t.equal(clocks.offset(processor), null, 'not measured yet')
    clocks.measure(processor)
    const began = schedulerFacts(`/proc/${pid}/task/${pid}`).execStartNs + (clocks.offset(processor) ?? 0n)
    t.ok(began > before, 'never too early: a wait would end before its time')
    t.ok(began < asleep + 200_000_000n, `${began - asleep} ns after it was seen asleep`)
  }
  t.same(processes.getAffinity(0), allowed, 'we run where we ran before')
  clocks.measure(100_000)
  t.equal(clocks.offset(100_000), null, 'a processor that is not there')
})
