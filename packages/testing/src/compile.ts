import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { chmodSync, existsSync, mkdirSync, readFileSync, renameSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { processDirectory } from './temporary.js'

/** The runner makes it for the whole run (scripts/tests/marks.mjs): test files share their compiled programs. */
const ofRun = join(tmpdir(), 'programs')
const directory =
  process.env.PAGEFERRY_TEST_RUN !== undefined && existsSync(ofRun) ? ofRun : processDirectory('programs')

/**
 * Compiles a C program unless it has been compiled from the same source with the same flags.
 * @param source the source; its includes must not change within a run
 * @returns the program, which every user may run
 */
export function compileProgram(source: URL, flags: string[] = ['-O1']): string {
  const path = fileURLToPath(source)
  const hash = createHash('sha256').update(readFileSync(path)).update(flags.join('\0')).digest('hex')
  // The name is the source's: /proc/PID/comm shows it.
  const home = join(directory, hash.slice(0, 16))
  const program = join(home, basename(path, '.c'))
  if (existsSync(program)) return program
  mkdirSync(home, { recursive: true })
  chmodSync(home, 0o755)
  execFileSync('gcc', [...flags, '-o', `${program}.${process.pid}`, path])
  // Two test files may compile it at once.
  renameSync(`${program}.${process.pid}`, program)
  return program
}
