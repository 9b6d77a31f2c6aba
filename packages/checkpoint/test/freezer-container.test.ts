import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'

/**
 * As in a container without a cgroup namespace: the mount shows only the container's own cgroup, while
 * /proc/PID/cgroup has the path from the top of the hierarchy.
 */
const mounts = readFileSync('/proc/self/mounts', 'utf8')
  .split('\n')
  .map((line) => line.split(' '))
const v2 = mounts.find((fields) => fields[2] === 'cgroup2')
const v1 = mounts.find((fields) => fields[2] === 'cgroup' && fields[3].split(',').includes('freezer'))
const hierarchy = (v2 ?? v1)?.[1]

const enter = `
set -e
echo $$ > "$1/cgroup.procs"
mount --bind "$1" "$2"
umount --recursive --lazy "$3"
shift 3
exec "$@"
`
const program = `
import { readFileSync } from 'node:fs'
const { Freezer } = await import(${JSON.stringify(new URL('../src/freezer.ts', import.meta.url).href)})
const own = () => readFileSync('/proc/self/cgroup', 'utf8')
const before = own()
const freezer = Freezer.forProcess(process.pid, 'inside')
freezer.create()
freezer.add(process.pid)
const inside = own()
freezer.dissolve()
console.log(JSON.stringify({ record: freezer.record, moved: inside !== before, home: own() === before }))
`

t.test(
  'a mount that shows a part of the hierarchy',
  {
    skip: hierarchy === undefined ? 'kernel: no cgroup freezer is mounted' : false,
  },
  async (t) => {
    const cgroup = join(hierarchy as string, `pageferry-test-${process.pid}-container`)
    const shown = mkdtempSync(join(tmpdir(), 'pageferry-'))
    mkdirSync(cgroup)
    t.teardown(() => {
      rmdirSync(cgroup)
      rmdirSync(shown)
    })
    const loader = new URL('../../../scripts/typescript-loader.mjs', import.meta.url).href
    const node = [process.execPath, '--import', loader, '--input-type=module', '-e', program]
    const { stdout, stderr } = spawnSync(
      'unshare',
      [
        '--mount',
        '--propagation=private',
        'sh',
        '-c',
        enter,
        'enter',
        cgroup,
        shown,
        hierarchy as string,
        ...node,
      ],
      { encoding: 'utf8' },
    )
    t.equal(stderr, '')
    t.same(JSON.parse(stdout), {
      record: { version: v2 === undefined ? 1 : 2, path: `${shown}/pageferry-inside`, home: shown },
      moved: true,
      home: true,
    })
    t.notOk(existsSync(join(cgroup, 'pageferry-inside')))
  },
)
