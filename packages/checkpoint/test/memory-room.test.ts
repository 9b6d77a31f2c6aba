import { existsSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { memoryRoom } from '../src/memory-room.js'
import { containerIn, mountsOf } from './fixtures/container.js'

const limitBytes = 256 * 1024 ** 2
const limitFile = { 1: 'memory.limit_in_bytes', 2: 'memory.max' } as const

t.test('this machine', async (t) => {
  const { bytes, limitedBy } = memoryRoom()
  t.ok(Number.isFinite(bytes))
  t.match(limitedBy, /memory/)
})

for (const { version, mount } of mountsOf('memory')) {
  // A controller that is not enabled has no files in the cgroups below the top.
  const enabled = version === 1 || existsSync(join(mount, 'init.scope', limitFile[2]))
  const skip = enabled ? false : 'kernel: the memory controller is not enabled in cgroup v2'
  t.test(`v${version}: a container that sees only its own cgroup, which is limited`, { skip }, async (t) => {
    const limits = { [limitFile[version]]: String(limitBytes) }
    const { shown, run } = containerIn(t, mount, { limits })
    const found = run(`
      const { memoryRoom } = await import(${JSON.stringify(new URL('../src/memory-room.ts', import.meta.url).href)})
      console.log(JSON.stringify(memoryRoom()))
    `) as { bytes: number; limitedBy: string }
    t.equal(found.limitedBy, `the memory cgroup ${shown}`)
    t.ok(found.bytes > 0 && found.bytes < limitBytes, `${found.bytes} bytes`)
  })
}
