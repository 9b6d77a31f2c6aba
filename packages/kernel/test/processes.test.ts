import { readFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { eventually } from '@pageferry/testing/eventually'
import { isAlive, kill, startOrphan } from '@pageferry/testing/processes'
import t from 'tap'
import { processes } from '../src/index.js'

function start(): number {
  const { pid } = startOrphan('sleep', '1000')
  t.teardown(() => kill(pid))
  return pid
}

t.test('resource limits', async (t) => {
  const pid = start()
  const before = processes.prlimit(pid, processes.RLIMIT_NOFILE)
  t.ok(before.soft > 0n && before.hard >= before.soft)
  t.strictSame(processes.prlimit(pid, processes.RLIMIT_NOFILE, { soft: 77n, hard: before.hard }), before)
  t.strictSame(processes.prlimit(pid, processes.RLIMIT_NOFILE), { soft: 77n, hard: before.hard })
  t.match(readFileSync(`/proc/${pid}/limits`, 'utf8'), /Max open files +77 /)
  for (let resource = 0; resource < processes.RLIM_NLIMITS; resource++) processes.prlimit(pid, resource)
  t.equal(processes.prlimit(pid, 0).hard, processes.RLIM_INFINITY, 'RLIMIT_CPU')
  t.throws(() => processes.prlimit(pid, 99), { code: 'EINVAL', syscall: 'prlimit', pid })
  t.throws(() => processes.prlimit(pid, 7, { soft: -1n, hard: 0n }), TypeError)
})

t.test('scheduling', async (t) => {
  const pid = start()
  t.equal(processes.getPriority(pid), processes.getPriority(0))
  processes.setPriority(pid, 11)
  t.equal(processes.getPriority(pid), 11)
  processes.setPriority(pid, -1)
  t.equal(processes.getPriority(pid), -1, '-1 is no error')

  t.strictSame(processes.getScheduler(pid), { policy: 0, priority: 0 })
  processes.setScheduler(pid, 3, 0)
  t.strictSame(processes.getScheduler(pid), { policy: 3, priority: 0 }, 'SCHED_BATCH')
  t.throws(() => processes.setScheduler(pid, 1, 1000), { code: 'EINVAL' })

  processes.setIoprio(pid, (2 << 13) | 6)
  t.equal(processes.getIoprio(pid), (2 << 13) | 6)

  const mask = processes.getAffinity(pid)
  const bits = mask.reduce((sum, byte) => sum + byte.toString(2).replaceAll('0', '').length, 0)
  t.ok(mask.length % 8 === 0 && bits >= 1 && bits <= cpus().length)
  const one = new Uint8Array(mask.length)
  const byte = mask.findIndex((value) => value !== 0)
  one[byte] = mask[byte] & -mask[byte]
  processes.setAffinity(pid, one)
  t.strictSame(processes.getAffinity(pid), one)
  t.throws(() => processes.setAffinity(pid, new Uint8Array(8)), { code: 'EINVAL' })
})

t.test('sessions and signals', async (t) => {
  const pid = start()
  // Fields 5 and 6 of /proc/PID/stat, counted behind the command's closing parenthesis.
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  t.equal(processes.getpgid(pid), Number(fields[2]))
  t.equal(processes.getsid(pid), Number(fields[3]))
  processes.tgkill(pid, pid, 15)
  await eventually('it died of SIGTERM', () => !isAlive(pid))
  t.throws(() => processes.tgkill(0x7fff_fffe, 0x7fff_ffff, 0), { code: 'ESRCH', pid: 0x7fff_ffff })
  t.throws(() => processes.getsid(0x7fff_ffff), { code: 'ESRCH' })
})

t.test('clocks and CPU', async (t) => {
  const before = process.hrtime.bigint()
  const monotonic = processes.clockGettime(processes.CLOCK_MONOTONIC)
  t.ok(monotonic >= before && monotonic <= process.hrtime.bigint())
  t.ok(processes.clockGettime(processes.CLOCK_BOOTTIME) >= monotonic)
  t.ok(Math.abs(Number(processes.clockGettime(processes.CLOCK_REALTIME) / 1_000_000n) - Date.now()) < 1000)
  t.throws(() => processes.clockGettime(12345), { code: 'EINVAL' })
  const { xcr0, size } = processes.cpuXfeatures()
  t.equal(xcr0 & 3n, 3n, 'x87 and SSE')
  t.ok(size >= 576, 'legacy area and header')
})
