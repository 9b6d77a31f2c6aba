import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import type { WorkerMessage } from '../src/worker/ipc.js'
import { StatusReporter } from '../src/worker/status-reporter.js'

function setUp() {
  const sent: WorkerMessage[] = []
  const channel = { send: (message: WorkerMessage) => void sent.push(message) } as never
  const machine = { state: 'precopy' }
  const look = () => ({ state: machine.state, committed: false, report: { rounds: 1 } })
  const status = new StatusReporter(channel, { phase: 'prepare' }, look)
  return { sent, machine, status, states: () => sent.map((message) => 'state' in message && message.state) }
}

t.test('quiet while the workload stands still', async (t) => {
  const { machine, status, states, sent } = setUp()
  status.send()
  status.beQuiet()
  for (const state of ['freezing', 'dumping', 'serving']) {
    machine.state = state
    status.show({ phase: 'transfer' }, true)
    status.send()
  }
  t.same(states(), ['precopy'])
  status.beQuiet()
  status.speak()
  t.same(states(), ['precopy', 'serving'], 'once, how things are by then')
  t.match(sent[1], { type: 'status', progress: { phase: 'transfer' }, report: { rounds: 1 } })
  status.speak()
  status.send()
  t.same(states(), ['precopy', 'serving', 'serving'], 'as before')
})

t.test('not for long', async (t) => {
  const { machine, status, states } = setUp()
  status.beQuiet()
  machine.state = 'dumping'
  status.send()
  while (states().length === 0) await sleep(10)
  t.same(states(), ['dumping'])
})

t.test('the end is always said', async (t) => {
  const { status, sent } = setUp()
  status.beQuiet()
  status.end('resumed')
  t.match(sent.at(-1), { type: 'failed', error: { code: 'INTERNAL' } })
  await sleep(300)
  t.equal(sent.at(-1)?.type, 'failed', 'and nothing comes behind it')
})
