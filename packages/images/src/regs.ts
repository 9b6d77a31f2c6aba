import { PageferryError } from '@pageferry/base'
import { RegsMode } from './constants.js'
import type { UserX86Regs } from './types.js'

type RegName = Exclude<keyof UserX86Regs, 'mode'>

/** Names in the order of struct user_regs_struct (<sys/user.h>, x86_64). */
const regNames = [
  ...['r15', 'r14', 'r13', 'r12', 'bp', 'bx', 'r11', 'r10', 'r9', 'r8', 'ax', 'cx', 'dx', 'si', 'di'],
  ...['origAx', 'ip', 'cs', 'flags', 'sp', 'ss', 'fsBase', 'gsBase', 'ds', 'es', 'fs', 'gs'],
] as readonly RegName[]

/** General registers as PTRACE_GETREGSET(NT_PRSTATUS) gives them: 27 words. */
export function regsToEntry(regs: BigUint64Array): UserX86Regs {
  if (regs.length !== regNames.length) {
    throw new PageferryError('INTERNAL', `${regs.length} general registers, not ${regNames.length}`)
  }
  const entry = Object.fromEntries(regNames.map((name, i) => [name, regs[i]])) as Record<RegName, bigint>
  return { ...entry, mode: RegsMode.NATIVE }
}

/** The reverse of `regsToEntry`. Throws REFUSED for the registers of a 32-bit (compat) task. */
export function entryToRegs(entry: UserX86Regs): BigUint64Array {
  if (entry.mode !== undefined && entry.mode !== RegsMode.NATIVE) {
    throw new PageferryError('REFUSED', 'a 32-bit task cannot be restored')
  }
  return BigUint64Array.from(regNames, (name) => entry[name])
}
