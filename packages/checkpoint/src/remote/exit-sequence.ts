import { ptrace } from '@pageferry/kernel'

/**
 * Machine code that a workload's thread runs for an injected system call. It makes injection safe against the death of
 * the tracer.
 *
 *     entry:        syscall                      <- the tracer points rip here, arguments in registers
 *     exit:         rt_sigprocmask(SIG_SETMASK, original mask)
 *                   every register that a system call takes or clobbers = its original value
 *                   jmp original rip
 *     closeEntry:   syscall; close(result); jmp exit
 *     tableEntry:   the same for a table of calls, one behind the other:
 *         next:     if the result in the row at r15 is 0, there is no call: jmp exit
 *                   load rax, rdi, rsi, rdx, r10, r8, r9 from the row; syscall; store the result in it
 *                   r15 += a row; jmp next
 *
 * The flags are the thread's own, and nothing restores them. System calls keep them, and so must every instruction here
 * (jrcxz and lea, not test and add).
 *
 * When its tracer dies, a tracee continues from wherever it is. It finishes the current call, restores its own
 * registers and mask, and continues as if nothing had happened. While the tracer lives it stops the thread at the exit
 * of each system call (PTRACE_SYSCALL), and the exit part never runs.
 *
 * A table has two stops in all (PTRACE_CONT). It must end in a stop that is harmless without a tracer: an int3 would
 * kill, SIGSTOP would stop. So its last call sends the thread a signal that is not blocked and would be ignored
 * (workload-thread.ts, `chooseMark`). The kernel shows it to a tracer all the same, and drops it without one.
 *
 * We use no signal frame with rt_sigreturn. It would need memory for the XSAVE area below a stack pointer which need
 * not have any (Go), and would change the alternate stack. It also makes the kernel forget a pending restart block, so
 * that an interrupted nanosleep would return EINTR. Registers that no system call touches, and the FPU, simply stay as
 * they are.
 */

const { REG } = ptrace

export const entryOffset = 0
export const closeEntryOffset = 0x100
export const tableEntryOffset = 0x120
/** Behind the syscall instruction of the table's loop. A thread stands there when a call of its table has returned. */
export const tableReturnOffset = tableEntryOffset + 35
/** Room that the code needs, in bytes. */
export const codeBytes = 0x158

/** A row of a table: number, six arguments, result. Before the call the result is anything but 0. */
export const tableRowBytes = 64
export const tableResultOffset = 56

const movabs: [opcode: [number, number], register: number][] = [
  [[0x48, 0xb8], REG.rax],
  [[0x48, 0xb9], REG.rcx],
  [[0x48, 0xba], REG.rdx],
  [[0x48, 0xbe], REG.rsi],
  [[0x48, 0xbf], REG.rdi],
  [[0x49, 0xb8], REG.r8],
  [[0x49, 0xb9], REG.r9],
  [[0x49, 0xba], REG.r10],
  [[0x49, 0xbb], REG.r11],
  [[0x49, 0xbf], REG.r15],
]

/** The code for a thread that is to continue with `resume` (user_regs_struct order) and signal mask `mask`. */
export function injectionCode(resume: BigUint64Array, mask: bigint): Buffer {
  const code = Buffer.alloc(codeBytes, 0xcc)
  let at = entryOffset
  const emit = (...bytes: number[]): void => {
    for (const byte of bytes) code[at++] = byte
  }
  emit(0x0f, 0x05) // syscall
  const exit = at
  emit(0xb8, 14, 0, 0, 0) // mov eax, rt_sigprocmask
  emit(0xbf, 2, 0, 0, 0) // mov edi, SIG_SETMASK
  emit(0x48, 0x8d, 0x35) // lea rsi, [rip + mask]
  const maskDisplacement = at
  at += 4
  emit(0xba, 0, 0, 0, 0) // mov edx, 0
  emit(0x41, 0xba, 8, 0, 0, 0) // mov r10d, 8
  emit(0x0f, 0x05)
  for (const [opcode, register] of movabs) {
    emit(...opcode)
    code.writeBigUInt64LE(resume[register], at)
    at += 8
  }
  emit(0xff, 0x25, 0, 0, 0, 0) // jmp [rip + 0]
  code.writeBigUInt64LE(resume[REG.rip], at)
  at += 8
  code.writeBigUInt64LE(mask, at)
  code.writeInt32LE(at - (maskDisplacement + 4), maskDisplacement)
  at = closeEntryOffset
  emit(0x0f, 0x05) // syscall
  emit(0x89, 0xc7) // mov edi, eax
  emit(0xb8, 3, 0, 0, 0) // mov eax, close
  emit(0x0f, 0x05)
  emit(0xe9) // jmp exit
  code.writeInt32LE(exit - (at + 4), at)
  at = tableEntryOffset
  emit(0x49, 0x8b, 0x4f, tableResultOffset) // mov rcx, [r15 + 56]
  emit(0xe3, 39) // jrcxz end
  emit(0x49, 0x8b, 0x07) // mov rax, [r15]
  emit(0x49, 0x8b, 0x7f, 0x08) // mov rdi, [r15 + 8]
  emit(0x49, 0x8b, 0x77, 0x10) // mov rsi, [r15 + 16]
  emit(0x49, 0x8b, 0x57, 0x18) // mov rdx, [r15 + 24]
  emit(0x4d, 0x8b, 0x57, 0x20) // mov r10, [r15 + 32]
  emit(0x4d, 0x8b, 0x47, 0x28) // mov r8, [r15 + 40]
  emit(0x4d, 0x8b, 0x4f, 0x30) // mov r9, [r15 + 48]
  emit(0x0f, 0x05) // syscall
  emit(0x49, 0x89, 0x47, tableResultOffset) // mov [r15 + 56], rax
  emit(0x4d, 0x8d, 0x7f, tableRowBytes) // lea r15, [r15 + 64]
  emit(0xeb, tableEntryOffset - (at + 2)) // jmp next
  emit(0xe9) // end: jmp exit
  code.writeInt32LE(exit - (at + 4), at)
  return code
}

/**
 * Whether this is code that an earlier tracer left behind when it was killed. No thread runs it any more: each needs
 * only microseconds to get through it.
 */
export function isInjectionCode(bytes: Uint8Array): boolean {
  const code = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const ours = injectionCode(new BigUint64Array(27), 0n)
  const constant = [code, ours].map((each) =>
    Buffer.concat([each.subarray(0, 32), each.subarray(closeEntryOffset)]),
  )
  return constant[0].equals(constant[1])
}
