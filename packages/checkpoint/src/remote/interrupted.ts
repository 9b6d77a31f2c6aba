import { ptrace } from '@pageferry/kernel'
import { EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTNOINTR, ERESTARTSYS } from './errno.js'
import { SYS } from './syscalls.js'

/**
 * Threads that were stopped inside a system call.
 *
 * A ptrace stop interrupts a blocking call like a signal does. The value in rax decides what the program must see
 * (signal(7), "Interruption of system calls", and arch_do_signal_or_restart in the kernel):
 *
 *   -512 -513 -514   start the call again with the same registers. We leave it to the kernel, which knows better
 *                    whether a handler that runs first turns it into EINTR.
 *   -516             the kernel remembers the deadline in the thread's restart block, see waits.ts
 *   -4               calls that do not restart after any signal. If no signal is there to be delivered,
 *                    only our stop can be the cause: the call is made again.
 */

const { REG } = ptrace

export function signed(value: bigint): bigint {
  return BigInt.asIntN(64, value)
}

/** The number of the system call the thread is stopped in, or -1. */
export function interruptedCall(regs: BigUint64Array): number {
  return Number(signed(regs[REG.orig_rax]))
}

const neverRestarted = new Set<number>([
  SYS.epoll_wait,
  SYS.epoll_pwait,
  SYS.epoll_pwait2,
  SYS.rt_sigtimedwait,
  SYS.semop,
  SYS.semtimedop,
  SYS.accept,
  SYS.accept4,
  SYS.recvfrom,
  SYS.recvmsg,
  SYS.recvmmsg,
  SYS.msgrcv,
  SYS.msgsnd,
  SYS.io_getevents,
  // If the kernel cannot write the time that is left over their timeout.
  SYS.ppoll,
  SYS.select,
  SYS.pselect6,
])

/** Registers with which the *kernel* resumes the thread correctly from a stop inside get_signal. */
export function repairSpuriousEintr(regs: BigUint64Array, signalDeliverable: boolean): BigUint64Array {
  const repaired = regs.slice()
  if (signed(regs[REG.rax]) === EINTR && neverRestarted.has(interruptedCall(regs)) && !signalDeliverable) {
    // Still EINTR if a handler runs before the call does: programs rely on that to look at a flag.
    repaired[REG.rax] = BigInt.asUintN(64, ERESTARTNOHAND)
  }
  return repaired
}

/** Makes the same decision in user registers, for a thread that must go on without the kernel's help. */
export function rewound(regs: BigUint64Array): BigUint64Array {
  const resume = regs.slice()
  const nr = interruptedCall(regs)
  resume[REG.orig_rax] = BigInt.asUintN(64, -1n)
  if (nr < 0) return resume
  switch (signed(regs[REG.rax])) {
    case ERESTARTSYS:
    case ERESTARTNOINTR:
    case ERESTARTNOHAND:
      resume[REG.rax] = BigInt(nr)
      resume[REG.rip] -= 2n
      break
    case ERESTART_RESTARTBLOCK:
      resume[REG.rax] = BigInt(SYS.restart_syscall)
      resume[REG.rip] -= 2n
      break
  }
  return resume
}
