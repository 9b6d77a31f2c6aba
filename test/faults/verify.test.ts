// test-timeout-s: 900

import { closeSync, mkdtempSync, openSync, readFileSync, readSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { pageBytes } from '@pageferry/base'
import { type Lab, migrateInLab } from '@pageferry/lab'
import type { Status } from '@pageferry/service'
import { type MigrationOptions, type MigrationResult, reportOf } from '@pageferry/service/client'
import { eventually } from '@pageferry/testing/eventually'
import { kill9 } from '@pageferry/testing/processes'
import t, { type Test } from 'tap'
import { Driver } from '../support/driver.js'
import { explained, inLab } from '../support/in-lab.js'

/*
 * --verify against a link that flips bits. Each page of the workload that holds a marker arrives wrong. With
 * after-resume the workload runs on the destination by then: the migration says so, names the page, and keeps the
 * original. With before-resume it never runs there.
 */

const relay = fileURLToPath(new URL('../support/flipping-relay.mjs', import.meta.url))
const firstRelayPort = 7600
let nextRelayPort = firstRelayPort

/** What is XORed with it never stands in memory as a whole, but for the one page. */
const mask = 0x5a
const marker = Buffer.from('the marker of the page that shall arrive wrong 0123456789', 'latin1')

/**
 * Says the address of its marked page, then counts. `locked`: the page is locked, so it is sent in the final round.
 * `late`: it is written again and again.
 */
const program = `
import ctypes, mmap, os, sys, time
kind, log, masked = sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3])
libc = ctypes.CDLL(None)
private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
size = 24 << 20
memory = mmap.mmap(-1, size, flags=private)
for at in range(0, size, 4096):
    memory[at] = at // 4096 % 251 + 1
page = mmap.mmap(-1, 4096, flags=private) if kind == 'locked' else memory
at = 0 if kind == 'locked' else 777 * 4096
for i, byte in enumerate(masked):
    page[at + 100 + i] = byte ^ ${mask}
address = ctypes.addressof(ctypes.c_char.from_buffer(page)) + at
if kind == 'locked' and libc.mlock(ctypes.c_void_p(address), 4096) != 0:
    sys.exit('mlock')
with open(log, 'w') as file:
    print(hex(address), file=file, flush=True)
    count = 0
    while True:
        count += 1
        print(count, file=file, flush=True)
        time.sleep(0.02)
`

class Marked {
  readonly lab: Lab
  readonly pid: number
  readonly #directory: string

  private constructor(lab: Lab, pid: number, directory: string) {
    this.lab = lab
    this.pid = pid
    this.#directory = directory
  }

  static async start(t: Test, lab: Lab, kind: 'plain' | 'locked'): Promise<Marked> {
    const directory = mkdtempSync(join(tmpdir(), 'pageferry-verify-'))
    t.teardown(() => rmSync(directory, { recursive: true, force: true }))
    const masked = Buffer.from(marker.map((byte) => byte ^ mask)).toString('hex')
    const { pid } = await lab.a.start(['python3', '-c', program, kind, join(directory, 'log'), masked])
    const marked = new Marked(lab, pid, directory)
    await eventually('the workload to count', () => marked.lines.length > 2)
    return marked
  }

  get lines(): string[] {
    try {
      return readFileSync(join(this.#directory, 'log'), 'utf8').split('\n').slice(0, -1)
    } catch {
      return []
    }
  }

  get address(): string {
    return this.lines[0]
  }

  async counts(): Promise<void> {
    const before = this.lines.length
    await eventually('the workload to go on', () => this.lines.length > before + 3)
  }

  /** The bytes of the marker, where they should be. */
  markerOn(host: 'a' | 'b'): Buffer {
    const pid = this.lab.host(host).outerPid(this.pid)
    if (pid === null) throw new Error(`there is no process ${this.pid} on host ${host}`)
    const bytes = Buffer.alloc(marker.length)
    const memory = openSync(`/proc/${pid}/mem`, 'r')
    readSync(memory, bytes, 0, bytes.length, Number(this.address) + 100)
    closeSync(memory)
    return bytes
  }

  /** Over a link that flips a bit of the marker. */
  async move(
    options: MigrationOptions,
    onStatus?: (status: Status) => void,
  ): Promise<{ result: MigrationResult; flips: number }> {
    const { a } = this.lab
    let output = ''
    let relayPid = 0
    const via = async (dataUrl: string): Promise<string> => {
      const url = new URL(dataUrl)
      const port = String(nextRelayPort++)
      const command = [process.execPath, relay, a.address, port, url.port, marker.toString('hex')]
      const started = await a.start(command, { cwd: '/' })
      output = started.output
      relayPid = started.pid
      await eventually('the relay to listen', () => readFileSync(output, 'utf8').includes('listening'))
      url.port = port
      return url.href
    }
    const result = await migrateInLab(
      this.lab,
      this.pid,
      { compression: 'off', ...options, via },
      { onStatus },
    )
    await a.run(['kill', '-KILL', String(relayPid)], { cwd: '/' })
    return { result, flips: readFileSync(output, 'utf8').split('flipped').length - 1 }
  }

  async end(host: 'a' | 'b'): Promise<void> {
    await this.lab.host(host).run(['kill', '-KILL', String(this.pid)], { cwd: '/' })
    await eventually('the workload to end', () => this.lab.host(host).outerPid(this.pid) === null)
  }
}

/** Found, named, said on both sides; the original is there and can be ended as the message says. */
async function isKept(t: Test, marked: Marked, result: MigrationResult): Promise<void> {
  const { source, destination } = result
  t.match(result, { migrated: false, kept: true, unwatched: false })
  const details = { mismatches: 1, unproven: 0, differing: [{ address: marked.address }] }
  t.match(source, {
    state: 'failed',
    error: { code: 'VERIFY_FAILED', details },
    workload: { where: 'frozen' },
  })
  t.match(destination, { state: 'failed', error: { code: 'VERIFY_FAILED', details } })
  t.equal(destination?.workload?.where, 'running')
  t.not((details.differing[0] as { area?: string }).area, 'in no area')
  const report = reportOf(result)
  t.match(report, {
    outcome: 'kept',
    verify: { when: 'after-resume', mismatches: 1, differing: [{ address: marked.address }] },
  })
  t.ok((report?.verify?.pages ?? 0) > (24 << 20) / pageBytes, 'all other pages were compared')
  await marked.counts()
  t.same(marked.markerOn('a'), marker, 'the original can be looked at')
  t.notSame(marked.markerOn('b'), marker)
  const end = /To end it: (.*)$/.exec(source?.error?.message ?? '')?.[1] ?? 'false'
  t.match(await marked.lab.a.run(['sh', '-c', `sleep 0; ${retried(end)}`], { cwd: '/' }), { status: 0 })
  await eventually('the original to end', () => marked.lab.a.outerPid(marked.pid) === null)
  await marked.counts()
  await marked.end('b')
}

/** rmdir answers EBUSY for a moment while the last process is being reaped. */
function retried(command: string): string {
  return command.replace(
    /rmdir (\S+)$/,
    'for i in 1 2 3 4 5 6 7 8 9; do rmdir $1 && exit 0; sleep 0.2; done; exit 1',
  )
}

await inLab('a link that flips bits', async (t, lab) => {
  const wrong = [
    { what: 'a page of a round', kind: 'plain', mode: 'hybrid' },
    { what: 'a page of a round, without post-copy', kind: 'plain', mode: 'precopy' },
    { what: 'a page of the final round', kind: 'locked', mode: 'postcopy' },
    { what: 'a lazy page', kind: 'plain', mode: 'postcopy' },
  ] as const
  for (const { what, kind, mode } of wrong) {
    await t.test(`after the resume: ${what}`, (t) =>
      explained(t, lab, async () => {
        const marked = await Marked.start(t, lab, kind)
        const { result, flips } = await marked.move({ mode, verify: 'after-resume' })
        t.equal(flips, 1)
        await isKept(t, marked, result)
      }),
    )
  }

  await t.test('after the resume: both workers are killed before the proof', (t) =>
    explained(t, lab, async () => {
      const driver = new Driver(lab)
      const marked = await Marked.start(t, lab, 'plain')
      const killed = new Set<string>()
      const { result } = await marked.move(
        { mode: 'hybrid', maxRounds: 1, verify: 'after-resume', pushDelayMs: 1500 },
        ({ role, state, id }) => {
          if (!['running', 'serving'].includes(state) || killed.has(role)) return
          if (kill9(driver.worker(role === 'source' ? 'a' : 'b', role, id))) killed.add(role)
        },
      )
      t.same(killed, new Set(['source', 'destination']))
      await isKept(t, marked, result)
    }),
  )

  for (const { what, kind, mode } of wrong.slice(0, 3)) {
    await t.test(`before the resume: ${what}`, (t) =>
      explained(t, lab, async () => {
        const marked = await Marked.start(t, lab, kind)
        const { result, flips } = await marked.move({ mode, verify: 'before-resume' })
        t.equal(flips, 1)
        const details = { mismatches: 1, unproven: 0, differing: [{ address: marked.address }] }
        t.match(result, { migrated: false, kept: false, source: { workload: { where: 'running' } } })
        t.match(result.destination?.error, { code: 'VERIFY_FAILED', details })
        t.equal(reportOf(result)?.outcome, 'resumed')
        await marked.counts()
        t.equal(lab.b.outerPid(marked.pid), null)
        t.same(marked.markerOn('a'), marker)
        await marked.end('a')
      }),
    )
  }

  await t.test('before the resume: a lazy page is compared after it', (t) =>
    explained(t, lab, async () => {
      const marked = await Marked.start(t, lab, 'plain')
      const { result } = await marked.move({ mode: 'postcopy', verify: 'before-resume' })
      t.match(result, { kept: true, source: { error: { code: 'VERIFY_FAILED' } } })
      t.match(result.destination?.report, { verify: { when: 'before-resume', mismatches: 1 } })
      await marked.end('b')
    }),
  )

  await t.test('without verify nobody notices', (t) =>
    explained(t, lab, async () => {
      const marked = await Marked.start(t, lab, 'plain')
      const { result, flips } = await marked.move({ mode: 'hybrid' })
      t.equal(flips, 1)
      t.equal(result.migrated, true)
      t.notSame(marked.markerOn('b'), marker, 'the link is what this file says it is')
      await marked.end('b')
    }),
  )
})

t.end()
