// test-timeout-s: 330
import { execFileSync, spawn } from 'node:child_process'
import { closeSync, openSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { seededRandom } from '@pageferry/base'
import { memory, ptrace } from '@pageferry/kernel'
import { eventually } from '@pageferry/testing/eventually'
import { isAlive, kill } from '@pageferry/testing/processes'
import t from 'tap'
import { readMaps } from '../src/proc/maps.js'
import { readStatus } from '../src/proc/status.js'
import { readTids } from '../src/proc/tasks.js'
import {
  closeEntryOffset,
  codeBytes,
  injectionCode,
  tableEntryOffset,
  tableReturnOffset,
} from '../src/remote/exit-sequence.js'
import { findCodeSite } from '../src/remote/scratch.js'
import { StoppedProcess } from '../src/remote/stopped-process.js'
import { scratchDirectory, start } from './fixtures/start.js'

const { REG } = ptrace

function someRegisters(): BigUint64Array {
  return BigUint64Array.from({ length: 27 }, (_, i) => 0x1111_1111_1111_1111n * BigInt(i % 15) + 0x100n)
}

t.test('the bytes', async (t) => {
  const regs = someRegisters()
  const code = injectionCode(regs, 0x1234_5678_9abc_def0n)
  t.equal(code.length, codeBytes)
  t.equal(
    code.subarray(0, 32).toString('hex'),
    '0f05' + 'b80e000000' + 'bf02000000' + '488d35' + '7f000000' + 'ba00000000' + '41ba08000000' + '0f05',
  )
  t.equal(code.readBigUInt64LE(19 + 0x7f), 0x1234_5678_9abc_def0n, 'lea points at the mask')
  t.equal(code.readBigUInt64LE(19 + 0x7f - 8), regs[REG.rip], 'the jump goes where the thread was')
  t.equal(
    code.subarray(closeEntryOffset, closeEntryOffset + 12).toString('hex'),
    '0f05' + '89c7' + 'b803000000' + '0f05' + 'e9',
  )
  t.equal(
    code.readInt32LE(closeEntryOffset + 12),
    2 - (closeEntryOffset + 16),
    'the exit lies behind the first call',
  )
})

t.test('what a disassembler makes of it', async (t) => {
  const directory = scratchDirectory()
  const regs = someRegisters()
  writeFileSync(join(directory, 'code'), injectionCode(regs, 7n))
  const text = execFileSync(
    'objdump',
    ['-D', '-b', 'binary', '-m', 'i386:x86-64', '-M', 'intel', join(directory, 'code')],
    {
      encoding: 'utf8',
    },
  )
  const instructions = text
    .split('\n')
    .map((line) => /^\s+[0-9a-f]+:\t[0-9a-f ]+\t(.*?)\s*(#.*)?$/.exec(line)?.[1].replaceAll(/ +/g, ' '))
    .filter((line) => line !== undefined)
  const value = (name: keyof typeof REG): string => `0x${regs[REG[name]].toString(16)}`
  t.same(instructions.slice(0, 18), [
    'syscall',
    'mov eax,0xe',
    'mov edi,0x2',
    'lea rsi,[rip+0x7f]',
    'mov edx,0x0',
    'mov r10d,0x8',
    'syscall',
    ...(['rax', 'rcx', 'rdx', 'rsi', 'rdi', 'r8', 'r9', 'r10', 'r11', 'r15'] as const).map(
      (name) => `movabs ${name},${value(name)}`,
    ),
    'jmp QWORD PTR [rip+0x0]',
  ])
  t.ok(instructions.includes('jmp 0x2'))
  const table = instructions.indexOf('mov rcx,QWORD PTR [r15+0x38]')
  t.same(
    instructions.slice(table, table + 14).map((each) => each.replace(/^jrcxz 0x[0-9a-f]+$/, 'jrcxz end')),
    [
      'mov rcx,QWORD PTR [r15+0x38]',
      'jrcxz end',
      'mov rax,QWORD PTR [r15]',
      ...['rdi', 'rsi', 'rdx', 'r10', 'r8', 'r9'].map(
        (name, i) => `mov ${name},QWORD PTR [r15+0x${(8 * i + 8).toString(16)}]`,
      ),
      'syscall',
      'mov QWORD PTR [r15+0x38],rax',
      'lea r15,[r15+0x40]',
      `jmp 0x${tableEntryOffset.toString(16)}`,
      'jmp 0x2',
    ],
    'none of them changes the flags',
  )
  const end = Number.parseInt(/jrcxz +0x([0-9a-f]+)/.exec(text)?.[1] ?? '', 16)
  t.match(text, new RegExp(`^ +${end.toString(16)}:.*jmp +0x2$`, 'm'))
  t.match(text, new RegExp(`^ +${tableReturnOffset.toString(16)}:.*mov +QWORD PTR \\[r15\\+0x38\\],rax`, 'm'))
})

interface Tracer {
  kill(): Promise<void>
}

async function startTracer(pid: number): Promise<Tracer> {
  const loader = fileURLToPath(new URL('../../../scripts/typescript-loader.mjs', import.meta.url))
  const script = fileURLToPath(new URL('fixtures/restless-tracer.ts', import.meta.url))
  const child = spawn(process.execPath, ['--import', loader, script, String(pid)], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let output = ''
  let errors = ''
  child.stdout.on('data', (bytes) => {
    output += bytes
  })
  child.stderr.on('data', (bytes) => {
    errors += bytes
  })
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve()))
  await eventually('the tracer works', () => output.includes('ready') || child.exitCode !== null, {
    timeoutMs: 60_000,
  })
  if (child.exitCode !== null) throw new Error(`the tracer ended by itself:\n${errors}`)
  return {
    async kill() {
      if (child.exitCode !== null) throw new Error(`the tracer ended by itself:\n${errors}`)
      child.kill('SIGKILL')
      await ended
    },
  }
}

t.test(
  'the tracer is killed at any moment and the workload never notices',
  { timeout: 300_000 },
  async (t) => {
    const subject = await start('registers')
    const { pid } = subject
    t.teardown(() => kill(pid))
    await eventually('its threads run', () => readTids(pid).length === 7)
    await sleep(100) // pthread_create blocks all signals for a moment
    const seed = Number(process.env.PAGEFERRY_SEED ?? 20161104)
    const random = seededRandom(seed)
    const masks = () => new Map(readTids(pid).map((tid) => [tid, readStatus(pid, tid).sigBlocked]))
    const before = masks()
    t.equal(before.get(pid), (1n << 9n) | (1n << 63n))
    const same = () => [...masks()].every(([tid, mask]) => before.get(tid) === mask)
    let nrKills = 0
    let leftovers = 0
    // A busy machine gives the tracer little time: then it takes more kills until some hit.
    for (; nrKills < 20 || (leftovers < 2 && nrKills < 100); nrKills++) {
      const tracer = await startTracer(pid)
      const until = performance.now() + random() * 12
      while (performance.now() < until);
      await tracer.kill()
      if (!isAlive(pid)) break
      if (!codeSiteIsClean(pid)) leftovers++
      await eventually(
        `the signal masks are back after kill ${nrKills} (seed ${seed})`,
        () => !isAlive(pid) || same(),
      )
      if (!t.passing()) break
    }
    t.comment(`${nrKills} kills, ${leftovers} times in the middle`)
    t.ok(leftovers > 1, 'some kills hit the injection itself')
    await sleep(400)
    t.ok(isAlive(pid), `the workload runs: ${subject.output()}`)
    if (!isAlive(pid)) return
    const counter = (name: string) =>
      Buffer.from(memory.readBytes(pid, BigInt(subject.facts()[name]), 8)).readBigInt64LE(0)
    const earlier = counter('rounds')
    await eventually('its leader goes on counting', () => counter('rounds') > earlier)
    t.ok(counter('interrupted') <= 4n, `${counter('interrupted')} EINTR from epoll_wait`)
    const stopped = StoppedProcess.stop(pid, 'all')
    t.equal(stopped.leader.call('brk', 0), stopped.leader.call('brk', 0), 'the next tracer can inject')
    stopped.resume()
    t.ok(codeSiteIsClean(pid), 'and leaves nothing behind')
  },
)

function codeSiteIsClean(pid: number): boolean {
  const memFd = openSync(`/proc/${pid}/mem`, 'r')
  try {
    const code = new Uint8Array(codeBytes)
    memory.pread(memFd, findCodeSite(readMaps(pid), memFd), code)
    return code.every((byte) => byte === 0)
  } finally {
    closeSync(memFd)
  }
}
