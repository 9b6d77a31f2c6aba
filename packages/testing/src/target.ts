import { readFileSync } from 'node:fs'
import { compileProgram } from './compile.js'
import { eventually } from './eventually.js'
import { currentSyscall, SYS, startOrphan } from './processes.js'

/** A process of target.c: something to trace. */
export interface Target {
  pid: number
  /** See target.c. */
  area: bigint
  code: bigint
  readonly: bigint
  sigrt: number
}

export async function startTarget(): Promise<Target> {
  const { pid, output } = startOrphan(compileProgram(new URL('../programs/target.c', import.meta.url)))
  await eventually('the target runs', () => readFileSync(output, 'utf8').endsWith('\n'))
  await eventually('the target sleeps', () => currentSyscall(pid) === SYS.pause)
  const line = JSON.parse(readFileSync(output, 'utf8')) as Record<string, string | number>
  return {
    pid,
    area: BigInt(line.area),
    code: BigInt(line.code),
    readonly: BigInt(line.readonly),
    sigrt: Number(line.sigrt),
  }
}
