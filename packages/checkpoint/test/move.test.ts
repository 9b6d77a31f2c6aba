import { chmodSync, readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { processes } from '@pageferry/kernel'
import { eventually } from '@pageferry/testing/eventually'
import { isAlive, kill } from '@pageferry/testing/processes'
import t from 'tap'
import { readFds } from '../src/proc/fdinfo.js'
import { readMaps, readVmFlags } from '../src/proc/maps.js'
import { readStat } from '../src/proc/stat.js'
import { readStatus } from '../src/proc/status.js'
import { readTids } from '../src/proc/tasks.js'
import { readTimers } from '../src/proc/timers.js'
import { StoppedProcess } from '../src/remote/stopped-process.js'
import { move } from './fixtures/move.js'
import { scratchDirectory, start } from './fixtures/start.js'

/**
 * The memory map, with areas merged that differ in nothing that a process could notice: the kernel merges and
 * splits as it likes, and accounts ("ac") for what was writable once.
 */
function memoryMap(pid: number): string[] {
  const flags = readVmFlags(pid)
  const areas: { start: number; end: number; what: string; offset: bigint }[] = []
  for (const line of readMaps(pid)) {
    const anonymous = ['', '[heap]', '/dev/zero (deleted)'].includes(line.name)
    const letters = [...(flags.get(line.start) ?? [])].filter((flag) => flag !== 'ac').sort()
    const area = {
      start: line.start,
      end: line.start + line.nrPages,
      what: `${line.shared ? 's' : 'p'} ${anonymous ? '' : `${line.inode} ${line.name}`} ${letters.join(' ')}`,
      offset: anonymous ? 0n : line.offset,
    }
    const last = areas.at(-1)
    const offset = anonymous || last === undefined ? 0n : last.offset + BigInt((last.end - last.start) * 4096)
    if (last?.end === area.start && last.what === area.what && offset === area.offset) last.end = area.end
    else areas.push(area)
  }
  return areas.map(
    ({ start, end, what, offset }) => `${start.toString(16)}-${end.toString(16)} ${offset} ${what}`,
  )
}

const sigUsr2 = 1n << 11n

/** Everything about a process that can be seen from outside and must be the same afterwards. */
function snapshot(pid: number): Record<string, unknown> {
  const text = (name: string) => readFileSync(`/proc/${pid}/${name}`, 'latin1')
  const { ppid: _, state: _state, startTime: _time, flags: _flags, cpuTicks: _ticks, ...more } = readStat(pid)
  const { pgrp, session, ...stat } = more
  const { nsPids: _pids, tracerPid: _tracer, ...status } = readStatus(pid)
  const tids = readTids(pid).sort((a, b) => a - b)
  return {
    memoryMap: memoryMap(pid),
    stat: { ...stat, leads: [pgrp === pid, session === pid] },
    // sigwait(3) lets through what it waits for, but only while it sleeps. Its timers tick while it stands still.
    status: {
      ...status,
      sigBlocked: status.sigBlocked | sigUsr2,
      sharedPending: status.sharedPending & ~(1n << 37n) & ~(1n << 13n),
    },
    threads: tids.map((tid) => {
      const own = readStatus(pid, tid)
      return {
        comm: readFileSync(`/proc/${pid}/task/${tid}/comm`, 'latin1'),
        sigBlocked: own.sigBlocked | sigUsr2,
        sigPending: own.sigPending,
        capEffective: own.capEffective,
        uids: own.uids,
        scheduler: processes.getScheduler(tid),
        nice: processes.getPriority(tid),
        affinity: processes.getAffinity(tid),
        ioPriority: processes.getIoprio(tid),
      }
    }),
    links: ['exe', 'cwd', 'root'].map((name) => readlinkSync(`/proc/${pid}/${name}`)),
    files: [
      'cmdline',
      'environ',
      'auxv',
      'personality',
      'limits',
      'oom_score_adj',
      'coredump_filter',
      'timerslack_ns',
      'setgroups',
    ].map((name) => [name, name === 'limits' ? text(name).split('\n') : text(name)]),
    descriptors: readFds(pid).map(({ inode: _, mountId: _mount, target, text, ...info }) => ({
      ...info,
      target: target.replace(/^pipe:.*/, 'pipe'),
      text: text.replace(/^(ino|mnt_id|eventfd-id):.*$/gm, ''),
    })),
    timers: readTimers(pid).map(({ notifyTid: _, ...timer }) => timer),
    tasks: readdirSync(`/proc/${pid}/task`).length,
  }
}

for (const how of ['nothing', 'uid', 'caps']) {
  t.test(`everything of a process is the same after it was moved: ${how}`, async (t) => {
    const directory = scratchDirectory()
    chmodSync(directory, 0o777)
    const subject = await start('state', directory, how)
    t.teardown(() => kill(subject.pid))
    t.equal(subject.output(), 'ready\n')
    const before = snapshot(subject.pid)
    let after: Record<string, unknown> = {}
    const { pid, exitStatus } = await move(t, subject.pid, (restored) => {
      after = snapshot(restored)
    })
    for (const key of Object.keys(before)) t.same(after[key], before[key], key)
    process.kill(pid, 'SIGUSR2')
    await eventually('it has looked at itself', () => /ok|wrong/.test(subject.output()) || !isAlive(pid), {
      timeoutMs: 10_000,
    })
    t.equal(subject.output(), 'ready\nok\n')
    t.equal(exitStatus(), undefined, 'it is alive')
  })
}

t.test('a sleep that was interrupted before goes on for the time that remains', async (t) => {
  const ms = 2500
  const ways = ['clock_nanosleep', 'poll', 'futex'].map(async (how) => {
    const began = Date.now()
    const subject = await start('waiter', how, String(ms))
    t.teardown(() => kill(subject.pid))
    for (const pauseMs of [300, 300]) {
      // What opening a tracker does. From here on the kernel shows nothing but restart_syscall.
      await sleep(pauseMs)
      StoppedProcess.stop(subject.pid, 'one').resume()
    }
    await sleep(600)
    const { pid } = await move(t, subject.pid)
    const moved = Date.now() - began
    await eventually('it ends', () => subject.output().includes('}') || !isAlive(pid))
    const facts = subject.facts()
    t.same([facts.result, facts.errno], how === 'futex' ? [-1, 110] : [0, 0], how)
    // Started anew when it was moved, or by a stop, it would take at least 600 ms more.
    t.ok(
      Number(facts.ms) >= ms - 1 && Number(facts.ms) < Math.max(ms, moved) + 500,
      `${how}: ${facts.ms} ms of ${ms}`,
    )
  })
  await Promise.all(ways)
})
