import { withLab } from '@pageferry/lab'
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
      t.comment(lacking.length === 0 ? 'the kernel has all' : `the kernel lacks ${lacking.join('; ')}`)
      t.ok(lacking.length === 0 || (await lacks(lab.a)), 'it was said to be lacking, and is')
    },
    { services: false },
  )
})

/** Asked without our own code. */
async function lacks(host: {
  run(command: string[], options: { cwd: string }): Promise<{ status: number }>
}) {
  const kinds = ['netem', 'tbf']
  const statuses: number[] = []
  for (const kind of kinds) {
    const args = kind === 'netem' ? ['delay', '1ms'] : ['rate', '1mbit', 'burst', '128k', 'latency', '50ms']
    statuses.push(
      (await host.run(['tc', 'qdisc', 'add', 'dev', 'lo', 'root', kind, ...args], { cwd: '/' })).status,
    )
    await host.run(['tc', 'qdisc', 'del', 'dev', 'lo', 'root'], { cwd: '/' })
  }
  return statuses.some((status) => status !== 0)
}
