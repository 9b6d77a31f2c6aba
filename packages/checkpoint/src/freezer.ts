import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { PageferryError } from '@pageferry/base'

/**
 * The cgroup freezer, v2 (cgroup.freeze) or v1 (freezer.state): what holds a workload still when no tracer
 * does. A tracee runs again when its tracer dies, and a merely stopped process when anybody sends SIGCONT.
 */
export interface FreezerRecord {
  version: 1 | 2
  /** Directory of the cgroup that freezes. */
  path: string
  /** Directory of the cgroup that the process came from; null for one that was born in `path`. */
  home: string | null
}

const prefix = 'pageferry-'
/** Freezing takes microseconds; a thread in uninterruptible sleep holds it up. */
const freezeTimeoutMs = 10_000

interface Hierarchy {
  version: 1 | 2
  mount: string
  /** The cgroup that the mount shows as its top: in a container often its own. */
  root: string
}

/** The hierarchy with a freezer, cgroup v2 preferred unless one is asked for. */
function hierarchy(wanted?: 1 | 2): Hierarchy {
  // proc_pid_mountinfo(5): id, parent, device, root, mount point, ..., type, source, options of the file system
  const mounts = readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .map((line) => line.split(' '))
  const v2 = mounts.find((fields) => fields.at(-3) === 'cgroup2')
  if (v2 !== undefined && wanted !== 1) return { version: 2, mount: v2[4], root: v2[3] }
  const v1 = mounts.find(
    (fields) => fields.at(-3) === 'cgroup' && fields.at(-1)?.split(',').includes('freezer'),
  )
  if (v1 !== undefined && wanted !== 2) return { version: 1, mount: v1[4], root: v1[3] }
  throw new PageferryError(
    'UNSUPPORTED_HOST',
    'neither a cgroup v2 nor a v1 freezer hierarchy is mounted: nothing could hold the workload still',
  )
}

function directoryOf(cgroup: string, { mount, root }: Hierarchy): string {
  const hidden = root === '/' ? '' : root
  if (cgroup !== hidden && !cgroup.startsWith(`${hidden}/`)) {
    throw new PageferryError('UNSUPPORTED_HOST', `${mount} does not show the cgroup ${cgroup} of the process`)
  }
  return `${mount}${cgroup.slice(hidden.length)}`.replace(/\/$/, '')
}

function cgroupOf(pid: number, version: 1 | 2): string {
  for (const line of readFileSync(`/proc/${pid}/cgroup`, 'utf8').split('\n')) {
    const [id, controllers, ...path] = line.split(':')
    if (version === 2 ? id === '0' && controllers === '' : controllers?.split(',').includes('freezer')) {
      return path.join(':')
    }
  }
  throw new PageferryError('NO_SUCH_PROCESS', `process ${pid} is in no freezer cgroup`)
}

export class Freezer {
  readonly record: FreezerRecord

  constructor(record: FreezerRecord) {
    this.record = record
  }

  /** A cgroup below the process's own, so that its limits go on to apply. Nothing is moved yet. */
  static forProcess(pid: number, id: string, wanted?: 1 | 2): Freezer {
    const found = hierarchy(wanted)
    const home = directoryOf(cgroupOf(pid, found.version), found)
    return new Freezer({ version: found.version, path: `${home}/${prefix}${id}`, home })
  }

  /** A cgroup of its own at the top, for a skeleton. */
  static atTop(id: string, wanted?: 1 | 2): Freezer {
    const { version, mount } = hierarchy(wanted)
    return new Freezer({ version, path: `${mount}/${prefix}${id}`, home: null })
  }

  create(): void {
    mkdirSync(this.record.path, { recursive: true })
  }

  add(pid: number): void {
    writeFileSync(`${this.record.path}/cgroup.procs`, String(pid))
  }

  /** Returns when every thread is held. Stopped tracees count as held and stay so when they are let go. */
  freeze(): void {
    this.#set(true)
    const deadline = Date.now() + freezeTimeoutMs
    const pause = new Int32Array(new SharedArrayBuffer(4))
    while (!this.isFrozen()) {
      if (Date.now() > deadline) {
        this.#set(false)
        throw new PageferryError('TIMEOUT', `the freezer ${this.record.path} did not freeze the process`)
      }
      Atomics.wait(pause, 0, 0, 0.2)
    }
  }

  isFrozen(): boolean {
    if (this.record.version === 1) {
      return readFileSync(`${this.record.path}/freezer.state`, 'utf8').trim() === 'FROZEN'
    }
    return /^frozen 1$/m.test(readFileSync(`${this.record.path}/cgroup.events`, 'utf8'))
  }

  /** Idempotent: thawing is how a workload is resumed, also by a restarted service. */
  thaw(): void {
    if (existsSync(this.record.path)) this.#set(false)
  }

  #set(frozen: boolean): void {
    if (this.record.version === 2) writeFileSync(`${this.record.path}/cgroup.freeze`, frozen ? '1' : '0')
    else writeFileSync(`${this.record.path}/freezer.state`, frozen ? 'FROZEN' : 'THAWED')
  }

  /** Thaws, moves what is left home, and removes the cgroup. Idempotent. */
  dissolve(): void {
    if (!existsSync(this.record.path)) return
    this.thaw()
    if (this.record.home !== null) {
      for (const pid of readFileSync(`${this.record.path}/cgroup.procs`, 'utf8').split('\n')) {
        if (pid === '') continue
        try {
          writeFileSync(`${this.record.home}/cgroup.procs`, pid)
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
        }
      }
    }
    this.remove()
  }

  /** Removes the empty cgroup; EBUSY for a moment while the last process is being reaped. */
  remove(): void {
    const pause = new Int32Array(new SharedArrayBuffer(4))
    for (let attempt = 0; ; attempt++) {
      try {
        rmdirSync(this.record.path)
        return
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException
        if (code === 'ENOENT') return
        if (code !== 'EBUSY' || attempt === 200) throw error
        Atomics.wait(pause, 0, 0, 5)
      }
    }
  }
}
