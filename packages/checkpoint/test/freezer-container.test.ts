import { existsSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { containerIn, mountsOf } from './fixtures/container.js'

const [hierarchy] = mountsOf('freezer')
const skip = hierarchy === undefined ? 'kernel: no cgroup freezer is mounted' : false
const freezerModule = JSON.stringify(new URL('../src/freezer.ts', import.meta.url).href)
const probeModule = JSON.stringify(new URL('../src/probe-host.ts', import.meta.url).href)
const preflightModule = JSON.stringify(new URL('../src/preflight.ts', import.meta.url).href)

t.test('a mount that shows a part of the hierarchy', { skip }, async (t) => {
  const { cgroup, shown, run } = containerIn(t, hierarchy.mount)
  const found = run(`
    import { readFileSync } from 'node:fs'
    const { Freezer } = await import(${freezerModule})
    const own = () => readFileSync('/proc/self/cgroup', 'utf8')
    const before = own()
    const freezer = Freezer.forProcess(process.pid, 'inside')
    freezer.create()
    freezer.add(process.pid)
    const inside = own()
    freezer.dissolve()
    console.log(JSON.stringify({ record: freezer.record, moved: inside !== before, home: own() === before }))
  `)
  t.same(found, {
    record: { version: hierarchy.version, path: `${shown}/pageferry-inside`, home: shown },
    moved: true,
    home: true,
  })
  t.notOk(existsSync(join(cgroup, 'pageferry-inside')))
})

t.test('a mount that is read-only is refused before anything stands still', { skip }, async (t) => {
  const { shown, run } = containerIn(t, hierarchy.mount, { readOnly: true })
  const found = run(`
    const { Freezer } = await import(${freezerModule})
    const { probeHost } = await import(${probeModule})
    const { preflight } = await import(${preflightModule})
    const codes = []
    for (const make of [() => Freezer.forProcess(process.pid, 'x'), () => Freezer.atTop('x')]) {
      try {
        make()
      } catch (error) {
        codes.push(error.code)
      }
    }
    const { present } = probeHost().features.find(({ name }) => name === 'cgroup freezer')
    const { reason } = preflight(process.pid).problems.find(({ what }) => what === 'cgroup freezer')
    console.log(JSON.stringify({ codes, present, reason }))
  `)
  t.match(found, {
    codes: ['UNSUPPORTED_HOST', 'UNSUPPORTED_HOST'],
    present: false,
    reason: `no cgroup can be created in ${shown} (EROFS`,
  })
})
