import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { MIGRATION_SETTINGS } from '@pageferry/service/client'
import t from 'tap'

/** The help of the migrating commands says of every setting what its schema says. */

const program = fileURLToPath(new URL('../bin/pageferry.js', import.meta.url))

/** Each option's line of a command's help, without line breaks: flags to text. */
function optionsIn(...args: string[]): Map<string, string> {
  const { stdout } = spawnSync(process.execPath, [program, ...args, '--help'], { encoding: 'utf8' })
  const lines = stdout.slice(stdout.indexOf('Options:')).replace(/\n {5,}/g, ' ')
  const found = [...lines.matchAll(/^ {2}(-\S.*?) {2,}(.*)$/gm)].map(([, flags, text]) => [flags, text])
  t.equal(new Set(found.map(([flags]) => flags)).size, found.length, 'no option twice')
  return new Map(found as [string, string][])
}

/** Written by hand here, so that a change of the schema that users see is seen in a test as well. */
const onlyInTheApi = ['pushDelayMs']

for (const args of [['migrate'], ['lab', 'run']]) {
  t.test(args.join(' '), async (t) => {
    const options = optionsIn(...args)
    for (const [name, schema] of Object.entries(MIGRATION_SETTINGS)) {
      const { description, minimum, maximum, commandLine, ...setting } = schema as unknown as {
        description: string
        minimum?: number
        maximum?: number
        enum?: string[]
        default?: unknown
        commandLine?: { flags: string; description?: string; absence?: string }
      }
      t.equal(commandLine === undefined, onlyInTheApi.includes(name), name)
      if (commandLine === undefined) continue
      const text = options.get(commandLine.flags) ?? ''
      t.ok(text.startsWith(commandLine.description ?? description), `${commandLine.flags} ${text}`)
      const { absence } = commandLine
      const choices = setting.enum?.filter((each) => absence === undefined || each !== setting.default)
      if (choices !== undefined) t.match(text, `(${choices.join(', ')}`)
      if (maximum !== undefined)
        t.match(text, `(${absence === undefined ? minimum : Number(minimum) + 1} to ${maximum}`)
      if (setting.default !== undefined) t.match(text, `; default ${absence ?? setting.default})`)
    }
  })
}

t.test('values outside their range are refused with it', async (t) => {
  const cases: [string[], RegExp][] = [
    [['--max-rounds', '0'], /whole number from 1 to 1000\./],
    [['--max-downtime', '60001'], /whole number from 1 to 60000\./],
    [['--max-bandwidth', '0'], /whole number from 1 to 1000000\./],
    [['--bulk-lanes', '9'], /whole number from 1 to 8\./],
    [['--bulk-window', '1.5'], /whole number from 1 to 16\./],
    [['--verify=off'], /Allowed choices are after-resume, before-resume\./],
    [['--tracker', 'none'], /Allowed choices are wp-async, soft-dirty, page-hash\./],
  ]
  for (const [args, sentence] of cases) {
    const { status, stderr } = spawnSync(process.execPath, [program, 'migrate', ...args], {
      encoding: 'utf8',
    })
    t.equal(status, 2, args.join(' '))
    t.match(stderr, sentence)
  }
})
