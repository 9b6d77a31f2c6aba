// Follows the list of attributes: moved ones are the same after a move, reported ones are in the report.

import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { eventually } from '@pageferry/testing/eventually'
import { isAlive, kill, type Subject, startSubject } from '@pageferry/testing/processes'
import t from 'tap'
import { captureProcess } from '../src/capture.js'
import { callAttributes } from '../src/kinds/attributes/by-call.js'
import { describeCpus, parseCpus } from '../src/kinds/attributes/cpus.js'
import { outsideAttributes } from '../src/kinds/attributes/from-outside.js'
import { attributes, factsOfTheHost } from '../src/kinds/attributes/list.js'
import { FileTable } from '../src/kinds/file-table.js'
import { dumpMemoryMap } from '../src/kinds/memory-map/read.js'
import { Bystanders } from '../src/probe.js'
import { readFds } from '../src/proc/fdinfo.js'
import { readVmFlags } from '../src/proc/maps.js'
import { StoppedProcess } from '../src/remote/stopped-process.js'
import { move } from './fixtures/move.js'
import { compile, start } from './fixtures/start.js'

/** Moved attributes that the fixture does not set, and the program that does. */
const shownElsewhere: Record<string, readonly string[]> = {
  'fixtures/state.c': [
    ...[
      'signal-mask',
      'signal-actions',
      'pending-signals',
      'robust-list',
      'tid-address',
      'ids',
      'capabilities',
    ],
    ...['limits', 'interval-timers', 'posix-timers', 'umask', 'dumpable', 'threads', 'directories'],
    ...['executable', 'command-line', 'auxiliary-vector', 'process-ids'],
  ],
  'fixtures/registers.c': ['registers'],
  'fixtures/rseq.c': ['rseq'],
  'test/workloads/identity.c': ['future-locks'],
  'test/workloads/sleepers.c': ['clocks'],
}

/** The cgroup of this test may be the root of its hierarchy, and a kernel may know no core scheduling. */
const dependsOnTheHost = ['cgroup', 'core-scheduling']

/** Output of the fixture, by "when", then by name and thread. */
function said({ output }: Subject): Record<string, Map<string, string>> {
  const all: Record<string, Map<string, string>> = { default: new Map(), set: new Map(), now: new Map() }
  all.lacks = new Map()
  for (const [, when, name, value] of output().matchAll(/^(default|set|now|lacks) (\S+\/\d) (.*)$/gm)) {
    all[when].set(name, value)
  }
  return all
}

async function shown(subject: Subject, times: number): Promise<void> {
  await eventually(
    'it has shown itself',
    () => subject.output().match(/^shown$/gm)?.length === times || !isAlive(subject.pid),
    { timeoutMs: 10_000 },
  )
}

t.test('every attribute that is moved is the same after a move', async (t) => {
  const subject = await start('attributes', 'objects')
  t.teardown(() => kill(subject.pid))
  await shown(subject, 2)
  const [, queue, set] = /^objects (\d+) (\d+)$/m.exec(subject.output()) ?? []
  t.teardown(() => spawnSync('ipcrm', ['-q', queue, '-s', set]))
  const before = said(subject)
  for (const [name, value] of before.set) {
    if (before.lacks.has(name)) t.pass(name, { skip: `kernel: ${before.lacks.get(name)}` })
    else t.not(value, before.default.get(name), `${name} is not the default`)
  }
  const { pid, notMoved } = await move(t, subject.pid)
  process.kill(pid, 'SIGUSR2')
  await shown({ ...subject, pid }, 3)
  const after = said(subject)
  for (const [name, value] of before.set) t.equal(after.now.get(name), value, name)
  const lost = notMoved.map(({ what }) => what.split(' ')[0])
  for (const { name, fate } of attributes) {
    const expected = fate === 'reported' && !before.lacks.has(`${name}/0`) && !dependsOnTheHost.includes(name)
    if (expected) t.ok(lost.includes(name), `${name} is reported`)
    else if (!dependsOnTheHost.includes(name)) t.notOk(lost.includes(name), `${name} is not reported`)
  }
})

t.test('the freeze refuses what the preflight has not seen', async (t) => {
  for (const [kind, reason] of [
    ['landlock-thread', /confined by a Landlock domain/],
    ['ldt', /local descriptor table/],
    ['deadline', /SCHED_DEADLINE/],
  ] as const) {
    const { pid, output } = await startSubject([compile('odd'), kind])
    t.teardown(() => kill(pid))
    if (output().startsWith('unsupported')) {
      t.pass(kind, { skip: `kernel: ${output().trim()}` })
      continue
    }
    const bystanders = new Bystanders()
    t.teardown(() => bystanders.end())
    await bystanders.add(pid)
    const { map } = dumpMemoryMap(pid, readVmFlags(pid))
    const stopped = StoppedProcess.stop(pid, 'all')
    try {
      stopped.mapScratch()
      const capture = () => captureProcess(stopped, map, readFds(pid), new FileTable(), { bystanders })
      t.throws(capture, { code: 'WORKLOAD_CHANGED', message: reason }, kind)
    } finally {
      stopped.resume()
    }
    t.equal(isAlive(pid), true, 'it runs on')
  }
})

t.test('the list', async (t) => {
  const names = attributes.map(({ name }) => name)
  t.equal(new Set(names).size, names.length, 'each is there once')
  const travelling = [...callAttributes, ...outsideAttributes].map(({ name }) => name)
  t.same(
    travelling.filter((name) => !names.includes(name)),
    [],
    'every attribute that travels is in it',
  )
  const fixture = await start('attributes')
  t.teardown(() => kill(fixture.pid))
  await shown(fixture, 2)
  const set = [...said(fixture).set.keys()].map((name) => name.split('/')[0])
  const elsewhere = Object.values(shownElsewhere).flat()
  const moved = attributes.filter(({ fate }) => fate === 'moved').map(({ name }) => name)
  t.same(
    moved.filter((name) => !set.includes(name) && !elsewhere.includes(name)),
    [],
    'every attribute that is moved is set by a program that is moved',
  )
  t.same(
    [...set, ...elsewhere].filter((name) => !moved.includes(name)),
    [],
    'no program shows an attribute that the list does not know',
  )
})

t.test('every field of /proc/PID/status belongs to an attribute, or is none', async (t) => {
  const named = [...attributes.flatMap(({ shown = [] }) => shown), ...factsOfTheHost]
  t.equal(new Set(named).size, named.length, 'each field is there once')
  const fields = readFileSync('/proc/self/status', 'utf8')
    .split('\n')
    .flatMap((line) => /^([^:]+):/.exec(line)?.[1] ?? [])
  t.ok(fields.length > 40)
  // A field of a newer kernel: decide whether a move must carry it, and add it to the list.
  t.same(
    fields.filter((field) => !named.includes(field)),
    [],
  )
})

t.test('sets of processors', async (t) => {
  t.same(parseCpus('0-2,9\n'), Uint8Array.of(0b111, 0b10))
  t.equal(describeCpus(parseCpus('0-2,9')), 'processors 0, 1, 2, 9')
  t.equal(describeCpus(parseCpus('11')), 'processor 11')
})
