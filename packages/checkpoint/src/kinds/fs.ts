import { readlinkSync, statSync } from 'node:fs'
import type { FileEntry, FsEntry } from '@pageferry/images'
import type { CaptureContext } from '../capture-context.js'
import type { Problem } from '../problems.js'
import { isText } from '../proc/text.js'
import type { SkeletonProcess } from '../remote/skeleton-process.js'
import { type FileTable, requiredPath } from './file-table.js'

/** The fs of a process in the kernel's terms: working directory, root directory, umask. */

/** The directories are restored by their paths, as files are. */
export function checkFs(pid: number): Problem[] {
  const directories = { cwd: 'working directory', root: 'root directory' }
  return Object.entries(directories).flatMap(([link, name]) => {
    const path = readlinkSync(`/proc/${pid}/${link}`)
    const what = `the ${name} ${path}`
    if (!isText(path)) return [{ what, reason: 'its path is not valid UTF-8, which images require' }]
    const there = statSync(path, { bigint: true, throwIfNoEntry: false })
    const real = statSync(`/proc/${pid}/${link}`, { bigint: true })
    if (there !== undefined && there.dev === real.dev && there.ino === real.ino) return []
    return [{ what, reason: 'the path no longer leads to it: it was removed, renamed or mounted over' }]
  })
}

/** Dumps directories and umask. The directories are entered into the file table, as CRIU does. */
export function dumpFs({ pid, status }: CaptureContext, files: FileTable): FsEntry {
  const cwd = readlinkSync(`/proc/${pid}/cwd`)
  const root = readlinkSync(`/proc/${pid}/root`)
  return {
    cwdId: files.mappedFile(cwd, `cwd:${cwd}`, 0o200000),
    rootId: files.mappedFile(root, `root:${root}`, 0o200000),
    umask: status.umask,
  }
}

/** Runs in the skeleton, while it is privileged. */
export function restoreFs(skeleton: SkeletonProcess, fs: FsEntry, files: FileEntry[]): void {
  const { pid } = skeleton
  const root = requiredPath(files, fs.rootId, 'the root directory')
  const cwd = requiredPath(files, fs.cwdId, 'the working directory')
  skeleton.queue(pid, 'chdir', [skeleton.put(Buffer.from(`${cwd}\0`))])
  if (root !== '/') skeleton.queue(pid, 'chroot', [skeleton.put(Buffer.from(`${root}\0`))])
  if (fs.umask !== undefined) skeleton.queue(pid, 'umask', [fs.umask])
}
