import { spawn } from 'node:child_process'
import t from 'tap'
import { identifyProcess, isAlive, killAndWait } from '../src/server/process-identity.js'

t.test('a process is known by more than its pid', async (t) => {
  const child = spawn('sleep', ['60'])
  const identity = identifyProcess(child.pid ?? 0)
  if (identity === undefined) throw new Error('sleep was not started')
  t.ok(isAlive(identity))
  t.notOk(isAlive({ ...identity, startTicks: '1' }), 'a pid that was used again')
  t.notOk(isAlive({ ...identity, bootId: 'other' }), 'a pid from before the last boot')

  t.ok(await killAndWait({ ...identity, startTicks: '1' }, 100), 'nothing to kill')
  t.ok(isAlive(identity), 'the wrong one was not killed')
  t.ok(await killAndWait(identity, 5000))
  t.notOk(isAlive(identity))
  t.equal(identifyProcess(2 ** 30), undefined)
})
