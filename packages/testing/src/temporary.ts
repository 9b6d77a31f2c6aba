import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** Makes a directory that is removed at the end of this process; every user may enter it. */
export function processDirectory(name: string): string {
  const directory = mkdtempSync(join(tmpdir(), `pageferry-${name}-`))
  chmodSync(directory, 0o755)
  process.on('exit', () => rmSync(directory, { recursive: true, force: true }))
  return directory
}
