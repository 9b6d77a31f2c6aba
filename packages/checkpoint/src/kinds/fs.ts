import { readlinkSync, statSync } from 'node:fs'
import type { FileEntry, FsEntry } from '@pageferry/images'
import type { CaptureContext } from '../capture-context.js'
import type { Problem } from '../problems.js'
import { isText } from '../proc/text.js'
import type { SkeletonProcess } from '../remote/skeleton-process.js'
import type { OpenGhost } from './descriptors/kind.js'
import { type FileTable, requiredPath } from './file-table.js'
import { namedLink } from './ghosts/find.js'
import { leadsTo } from './leads-to.js'

/** The fs of a process in the kernel's terms: working directory, root directory, umask. */

/** The directories are restored by their paths, as files are. */
export function checkFs(pid: number): Problem[] {
  const directories = { cwd: 'working directory', root: 'root directory' }
  return Object.entries(directories).flatMap(([link, name]) => {
    const { path, ghost } = namedLink(`/proc/${pid}/${link}`)
    const what = `the ${name} ${path}`
    if (!isText(path)) return [{ what, reason: 'its path is not valid UTF-8, which images require' }]
    if (link === 'cwd' && ghost !== undefined) return []
    if (leadsTo(path, statSync(`/proc/${pid}/${link}`, { bigint: true }))) return []
    return [{ what, reason: 'the path no longer leads to it: it was removed, renamed or mounted over' }]
  })
}

/** Dumps directories and umask. The directories are entered into the file table, as CRIU does. */
export function dumpFs({ pid, status }: CaptureContext, files: FileTable): FsEntry {
  const cwd = namedLink(`/proc/${pid}/cwd`)
  const root = readlinkSync(`/proc/${pid}/root`)
  return {
    cwdId: files.mappedFile(cwd.path, `cwd:${cwd.ghost ?? cwd.path}`, 0o200000, cwd.ghost),
    rootId: files.mappedFile(root, `root:${root}`, 0o200000),
    umask: status.umask,
  }
}

/** Runs in the skeleton, while it is privileged. */
export function restoreFs(
  skeleton: SkeletonProcess,
  fs: FsEntry,
  files: FileEntry[],
  openGhost: OpenGhost,
): void {
  const { pid } = skeleton
  const root = requiredPath(files, fs.rootId, 'the root directory')
  const cwd = requiredPath(files, fs.cwdId, 'the working directory')
  const ghost = openGhost(fs.cwdId, 0)
  if (ghost !== undefined) {
    const fd = skeleton.lend(ghost)
    skeleton.queue(pid, 'fchdir', [fd])
    skeleton.queue(pid, 'close', [fd])
  } else skeleton.queue(pid, 'chdir', [skeleton.put(Buffer.from(`${cwd}\0`))])
  if (root !== '/') skeleton.queue(pid, 'chroot', [skeleton.put(Buffer.from(`${root}\0`))])
  if (fs.umask !== undefined) skeleton.queue(pid, 'umask', [fs.umask])
}
