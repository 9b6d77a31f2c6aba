import { spawnSync } from 'node:child_process'
import { processes } from '@pageferry/kernel'
import { adopt, kill, startSubject } from '@pageferry/testing/processes'
import t from 'tap'
import { checkHosts, hostFacts } from '../src/host-facts.js'
import {
  areOwnOffsets,
  bootId,
  clocksOf,
  offsetsFor,
  ownClocks,
  readClocks,
  timeNamespace,
  toTimens,
} from '../src/kinds/clocks.js'
import { probeHost } from '../src/probe-host.js'

const second = 1_000_000_000n

t.test('facts of this host', async (t) => {
  const facts = hostFacts()
  t.equal(facts.vdsoSha256.length, 32)
  t.ok(facts.vdsoPages >= 1 && facts.vvarPages >= 1)
  t.ok((facts.xcr0 & 7n) === 7n, 'x87, SSE, AVX')
  t.ok(facts.xsaveBytes >= 832)
  t.ok(facts.cpuFlags.includes('sse2'))
  t.equal(facts.bootId, bootId())
  t.same(hostFacts(), facts, 'they do not change')
})

t.test('which hosts go together', async (t) => {
  const facts = hostFacts()
  checkHosts(facts, facts)
  checkHosts(facts, {
    ...facts,
    cpuFlags: [...facts.cpuFlags, 'new'],
    xcr0: facts.xcr0 | (1n << 18n),
    bootId: 'other',
  })
  const refusal = (source: Partial<typeof facts>, destination: Partial<typeof facts>): string => {
    try {
      checkHosts({ ...facts, ...source }, { ...facts, ...destination })
    } catch (error) {
      t.match(error, { code: 'REFUSED' })
      return (error as Error).message
    }
    return ''
  }
  t.match(refusal({}, { machine: 'arm64' }), /arm64/)
  t.match(refusal({}, { vdsoSha256: new Uint8Array(32), kernelRelease: '9.9' }), /vdso differ.*9\.9/)
  t.match(refusal({}, { vvarPages: 99 }), /vdso differ/)
  t.match(refusal({ cpuFlags: ['sse2', 'avx512f'] }, { cpuFlags: ['sse2'] }), /lacks features.*avx512f/)
  t.match(refusal({ xcr0: facts.xcr0 | (1n << 18n) }, {}), /XSAVE components/)
})

t.test('clocks of a process in another time namespace', async (t) => {
  const near = (a: bigint, b: bigint): boolean => a - b < second / 5n && b - a < second / 5n
  const ours = ownClocks()
  const same = clocksOf(process.pid)
  t.ok(near(same.monotonicNs, ours.monotonicNs) && near(same.boottimeNs, ours.boottimeNs))
  if (spawnSync('unshare', ['--help'], { encoding: 'utf8' }).stdout.includes('--monotonic')) {
    const shell = await startSubject([
      ...['unshare', '--time', '--monotonic', '-1000', '--boottime', '2000'],
      ...['sh', '-c', 'sh -c "echo \\$\\$; exec sleep 60"; true'],
    ])
    // Only children are in the new namespace: the one that says its pid.
    const pid = Number(shell.output())
    adopt(pid)
    t.teardown(() => {
      kill(pid)
      kill(shell.pid)
    })
    const theirs = clocksOf(pid)
    const now = ownClocks()
    t.ok(near(theirs.monotonicNs, now.monotonicNs - 1000n * second), `${theirs.monotonicNs}`)
    t.ok(near(theirs.boottimeNs, now.boottimeNs + 2000n * second))
  }
  t.match(timeNamespace('self'), /^time:\[\d+\]$/)
})

t.test('offsets that carry a clock over', async (t) => {
  const before = { monotonicNs: 100n * second, boottimeNs: 150n * second }
  const workload = { monotonicNs: 40n * second + 5n, boottimeNs: 400n * second }
  // This process lives in the host's time namespace, where our own offsets are zero.
  const reading = { ...workload, kernelMonotonicNs: 39n * second, kernelBoottimeNs: 399n * second }
  t.same(offsetsFor(reading, before, false), { monotonicNs: -60n * second + 5n, boottimeNs: 250n * second })
  t.same(
    offsetsFor(reading, before, true),
    { monotonicNs: second + 5n, boottimeNs: second },
    'one kernel: exactly its own, whenever the reading was taken',
  )
  t.ok(areOwnOffsets({ monotonicNs: 0n, boottimeNs: 0n }))
  t.notOk(areOwnOffsets({ monotonicNs: 1n, boottimeNs: 0n }), 'also a nanosecond needs a namespace')
  const now = readClocks(process.pid)
  t.same([now.kernelMonotonicNs, now.kernelBoottimeNs], [now.monotonicNs, now.boottimeNs])
  t.same(toTimens({ monotonicNs: 3n * second + 7n, boottimeNs: 0n }), {
    monotonic: { tvSec: 3n, tvNsec: 7n },
    boottime: { tvSec: 0n, tvNsec: 0n },
  })
})

t.test('the probe says of every feature what its lack costs', async (t) => {
  const { features, kernelRelease } = probeHost()
  t.ok(kernelRelease.length > 0)
  const present = new Map(features.map(({ name, present }) => [name, present]))
  t.equal(present.get('root'), true)
  t.equal(present.get('userfaultfd'), true)
  t.equal(present.get('cgroup freezer'), true)
  t.equal(present.get('capabilities'), true)
  t.ok(features.every(({ cost }) => cost.length > 10))
  t.ok(processes.cpuXfeatures().xcr0 !== 0n)
})
