import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const program = fileURLToPath(new URL('../bin/pageferry.js', import.meta.url))

function pageferry(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(process.execPath, [program, ...args], { encoding: 'utf8', timeout: 20_000 })
}

t.test('wrong usage: exit status 2 and a sentence', async (t) => {
  const cases: [string[], RegExp][] = [
    [['nonsense'], /unknown command 'nonsense'/],
    [['migrate', '--pid', '1'], /required option '--source <url>' not specified/],
    [
      ['migrate', '--source', 'x', '--destination', 'y', '--pid', 'abc'],
      /'--pid <pid>' argument 'abc' is invalid/,
    ],
    [['migrate', '--source', 'x', '--destination', 'y', '--pid', '0'], /whole number from 1 on/],
    [['migrate', '--source', 'x', '--destination', 'y', '--pid', '9'], /x is not the URL of a dump-service/],
    [['lab', 'run', '--mode', 'magic', '--', 'true'], /Allowed choices are hybrid, precopy, postcopy/],
    [['lab', 'run', '--compression', 'gzip', '--', 'true'], /Allowed choices are auto, off, zstd/],
    [['lab', 'run', '--verify=never', '--', 'true'], /Allowed choices are after-resume, before-resume/],
    [['lab', 'run'], /A command is needed after "--"/],
    [['lab', 'run', '--report', '/nonexistent/r.json', '--', 'true'], /report cannot be written/],
    [['lab', 'exec', 'x', 'c', '--', 'true'], /Allowed choices are a, b/],
    [['lab', 'exec', 'no-such-lab', 'a', '--', 'true'], /There is no lab "no-such-lab"/],
    [['lab', 'urls', 'no-such-lab'], /There is no lab/],
    [['lab', 'up', '../escape'], /cannot name a lab/],
    [['lab', 'down', 'a/b'], /cannot name a lab/],
    [['check', '-5'], /unknown option|whole number/],
    [['check', 'x'], /whole number from 1 on/],
    [
      ['dump-service', '--listen', '192.0.2.1:7421', '--state-dir', '/nonexistent'],
      /no TLS and no authentication/,
    ],
  ]
  for (const [args, sentence] of cases) {
    const { status, stderr, stdout } = pageferry(...args)
    t.equal(status, 2, args.join(' '))
    t.match(stderr, sentence)
    t.notMatch(stderr, /\n\s+at .*\.js/, 'no stack trace')
    t.equal(stdout, '')
  }
})

t.test('asked for, help and version are answers', async (t) => {
  const version = pageferry('--version')
  t.equal(version.status, 0)
  t.match(version.stdout, /^\d+\.\d+\.\d+\n$/)
  for (const args of [['--help'], ['migrate', '--help'], ['lab', 'run', '--help']]) {
    const { status, stdout } = pageferry(...args)
    t.equal(status, 0)
    t.match(stdout, /Usage: pageferry/)
  }
})

t.test('services that are not there: status 4, and which one', async (t) => {
  const nothing = 'http://127.0.0.1:59999'
  const { status, stderr } = pageferry('migrate', '--source', nothing, '--destination', nothing, '--pid', '1')
  t.equal(status, 4)
  t.match(stderr, /nothing answers at http:\/\/127\.0\.0\.1:59999: is the dump-service running there\?/)
  // No request may leave this machine for an address that only a lab could have.
  const stray = pageferry(
    'migrate',
    '--source',
    'http://10.77.254.1:7421',
    '--destination',
    nothing,
    '--pid',
    '1',
  )
  t.equal(stray.status, 4)
  t.match(stray.stderr, /No lab on this machine has the address 10\.77\.254\.1/)
})

t.test('lab down of a lab that is not there is no error', async (t) => {
  t.equal(pageferry('lab', 'down', 'no-such-lab').status, 0)
})
