// test-group: lab
import { type LabHost, withLab } from '@pageferry/lab'
import t from 'tap'
import { qdiscsOf, shapeCable } from '../src/link/qdisc.js'

t.test('what the kernel is asked for', async (t) => {
  const link = { rttMs: 0, jitterMs: 0, rateMbit: 0 }
  t.same(qdiscsOf(link), [])
  t.same(qdiscsOf({ ...link, rateMbit: 100 }), [
    ['tbf', 'rate', '100mbit', 'burst', '131072', 'latency', '50ms'],
  ])
  t.same(qdiscsOf({ ...link, rttMs: 10, rateMbit: 1000 }), [
    ['netem', 'delay', '5000us', '0us', 'limit', '100000'],
    ['tbf', 'rate', '1000mbit', 'burst', '1250000', 'latency', '50ms'],
  ])
  t.same(
    qdiscsOf({ ...link, rttMs: 1, jitterMs: 0.5 })[1],
    ['pfifo', 'limit', '100000'],
    'no packet overtakes another one',
  )
})

t.test('both hosts send through it, and nothing of it stays', async (t) => {
  await withLab(
    async (lab) => {
      const shown = async (): Promise<string[]> => {
        const hosts = [lab.a, lab.b].map((host) =>
          host.run(['tc', 'qdisc', 'show', 'dev', 'eth0'], { cwd: '/' }),
        )
        return (await Promise.all(hosts)).map(({ stdout }) => stdout)
      }
      const before = await shown()
      const lacking: string[] = []
      for (const [link, kinds] of [
        [{ rttMs: 0, jitterMs: 0, rateMbit: 80 }, ['tbf']],
        [{ rttMs: 10, jitterMs: 2, rateMbit: 80 }, ['netem', 'tbf']],
        [{ rttMs: 10, jitterMs: 2, rateMbit: 0 }, ['netem', 'pfifo']],
      ] as const) {
        const undo = await shapeCable(lab, link)
        if (undo === null) lacking.push(kinds.join(' and '))
        else {
          for (const out of await shown()) for (const kind of kinds) t.match(out, `qdisc ${kind} `)
          await undo()
        }
        t.same(await shown(), before)
      }
      const missing = await lackingKinds(lab.a)
      t.comment(`the kernel lacks ${missing.join(', ') || 'nothing'}`)
      const expected = ['tbf', 'netem and tbf', 'netem and pfifo'].filter((kinds) =>
        missing.some((kind) => kinds.includes(kind)),
      )
      t.same(lacking, expected, 'the cable was shaped wherever the kernel can')
    },
    { services: false },
  )
})

/** Asked without our own code. */
async function lackingKinds(host: LabHost): Promise<string[]> {
  const lacking: string[] = []
  for (const [kind, ...args] of [
    ['netem', 'delay', '1ms'],
    ['tbf', 'rate', '1mbit', 'burst', '128k', 'latency', '50ms'],
    ['pfifo'],
  ]) {
    const add = ['tc', 'qdisc', 'add', 'dev', 'lo', 'root', kind, ...args]
    if ((await host.run(add, { cwd: '/' })).status !== 0) lacking.push(kind)
    else await host.run(['tc', 'qdisc', 'del', 'dev', 'lo', 'root'], { cwd: '/' })
  }
  return lacking
}
