import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { readStatus } from '@pageferry/checkpoint'
import { DEFAULT_SETTINGS } from '@pageferry/service'
import { decodeFrame, encodeFrame, type FrameOf, WireError } from '@pageferry/wire'
import t from 'tap'
import { frameOf, messageOf } from '../src/messages.js'
import type { Workload } from '../src/workload.js'

/** A program with five threads of its own beside the leader's, in a pid namespace where it is not what we call it. */
const program = `
import os, sys, threading
for _ in range(5): threading.Thread(target=threading.Event().wait, daemon=True).start()
print(" ".join(str(n) for n in sorted(t.native_id for t in threading.enumerate())), flush=True)
sys.stdin.read()`

t.test('Begin lists every thread, by its id in the pid namespace of the workload', async (t) => {
  for (const apart of [false, true]) {
    const python = ['python3', '-c', program]
    const [command, ...args] = apart ? ['unshare', '--pid', '--fork', '--kill-child', ...python] : python
    const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'] })
    t.teardown(() => child.kill('SIGKILL'))
    // As the threads themselves see them (gettid(2)).
    const [said] = await once(child.stdout, 'data')
    const own = String(said).trim().split(' ').map(Number)
    const pid = apart ? childOf(child.pid as number) : (child.pid as number)
    const [nsPid] = readStatus(pid).nsPids.slice(-1)
    const root = {
      pid,
      facts: { nsPid, residentPages: 1 },
      identity: { comm: 'python3', threads: 6, startTime: '1' },
    }
    const workload = { root, space: { asId: 1 } } as Workload
    const sent = encodeFrame(frameOf({ type: 'begin' }, workload, DEFAULT_SETTINGS))
    const begin = decodeFrame(sent, 'control', 'to-destination').frame as FrameOf<'begin'>
    t.equal(begin.tids.length, 6)
    t.equal(begin.tids[0], nsPid, 'the leader first')
    t.strictSame(begin.tids, own)
    t.equal(begin.tids.includes(pid), !apart, 'not by the ids of this host')
  }
})

t.test('an error is read, everything else comes as it is', async (t) => {
  const progress = { type: 'progress', pendingPages: 1, faults: 2, installedPages: 3 } as const
  t.equal(messageOf(progress), progress)
  t.match(messageOf({ type: 'failed', code: 'REFUSED', message: 'no room', detailsJson: '{"a":1}' }), {
    type: 'failed',
    error: { code: 'REFUSED', message: 'no room', details: { a: 1 } },
  })
  const hello: FrameOf<'hello'> = {
    type: 'hello',
    versions: [1],
    migrationId: 'm',
    token: 't',
    lane: 'control',
    laneIndex: 0,
    resume: false,
    compressions: [],
  }
  t.throws(() => messageOf(hello), WireError)
  t.throws(() => messageOf({ type: 'commit' }), { message: /commit after Welcome/ })
})

function childOf(parent: number): number {
  return Number(readFileSync(`/proc/${parent}/task/${parent}/children`, 'utf8').trim())
}
