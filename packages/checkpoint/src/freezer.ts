import { accessSync, constants, existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { PageferryError } from '@pageferry/base'
import { cgroupOf, directoryOf, type Hierarchy, hierarchies } from './cgroups.js'

/**
 * The cgroup freezer, v2 (cgroup.freeze) or v1 (freezer.state). It holds a workload still when no tracer does: a tracee
 * runs again when its tracer dies, and a stopped process runs again when it gets SIGCONT.
 */
export interface FreezerRecord {
  version: 1 | 2
  /** Directory of the cgroup that freezes. */
  path: string
  /** Directory of the cgroup that the process came from; null: it has no home except `path`. */
  home: string | null
}

const prefix = 'pageferry-'
/** Freezing takes microseconds, unless a thread is in uninterruptible sleep. */
const freezeTimeoutMs = 10_000

/** @throws UNSUPPORTED_HOST */
function freezerHierarchy(wanted?: 1 | 2): Hierarchy {
  const found = hierarchies('freezer').find(({ version }) => wanted === undefined || version === wanted)
  if (found !== undefined) return found
  throw new PageferryError(
    'UNSUPPORTED_HOST',
    'neither a cgroup v2 nor a v1 freezer hierarchy is mounted: the workload could not be frozen',
  )
}

/** The cgroup in which a process is frozen, by us or by others; null: it is not frozen. */
export function frozenIn(pid: number): string | null {
  for (const hierarchy of hierarchies('freezer')) {
    const cgroup = cgroupOf(pid, hierarchy, 'freezer')
    const path = cgroup === null ? null : directoryOf(cgroup, hierarchy)
    try {
      if (path !== null && isFrozen({ path, version: hierarchy.version })) return path
    } catch (error) {
      // The root of a hierarchy cannot be frozen and has no such file.
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    }
  }
  return null
}

/** Also when it was an ancestor that was told to freeze. */
function isFrozen({ path, version }: Pick<FreezerRecord, 'path' | 'version'>): boolean {
  if (version === 1) return readFileSync(`${path}/freezer.state`, 'utf8').trim() === 'FROZEN'
  return /^frozen 1$/m.test(readFileSync(`${path}/cgroup.events`, 'utf8'))
}

export class Freezer {
  readonly record: FreezerRecord

  constructor(record: FreezerRecord) {
    this.record = record
  }

  /**
   * Chooses a cgroup below the process's own, whose limits continue to apply. Nothing is moved yet.
   * @throws UNSUPPORTED_HOST when it could not be created
   */
  static forProcess(pid: number, id: string, wanted?: 1 | 2): Freezer {
    const hierarchy = freezerHierarchy(wanted)
    const cgroup = cgroupOf(pid, hierarchy, 'freezer')
    if (cgroup === null) {
      throw new PageferryError('NO_SUCH_PROCESS', `process ${pid} is in no freezer cgroup`)
    }
    const home = directoryOf(cgroup, hierarchy)
    if (home === null) {
      throw new PageferryError(
        'UNSUPPORTED_HOST',
        `${hierarchy.mount} does not show the cgroup ${cgroup} of the process`,
      )
    }
    return Freezer.#below(home, id, { version: hierarchy.version, home })
  }

  /**
   * Chooses a cgroup of its own at the top, for a skeleton.
   * @throws UNSUPPORTED_HOST when it could not be created
   */
  static atTop(id: string, wanted?: 1 | 2): Freezer {
    const { version, mount } = freezerHierarchy(wanted)
    return Freezer.#below(mount, id, { version, home: null })
  }

  static #below(parent: string, id: string, record: Omit<FreezerRecord, 'path'>): Freezer {
    try {
      // In a container the mount is often read-only. Refuse now and not in the freeze.
      accessSync(parent, constants.W_OK)
    } catch (cause) {
      throw new PageferryError(
        'UNSUPPORTED_HOST',
        `no cgroup can be created in ${parent} (${(cause as Error).message}): the workload could not be frozen`,
        { cause },
      )
    }
    return new Freezer({ ...record, path: `${parent}/${prefix}${id}` })
  }

  create(): void {
    mkdirSync(this.record.path, { recursive: true })
  }

  add(pid: number): void {
    writeFileSync(`${this.record.path}/cgroup.procs`, String(pid))
  }

  /** Returns when every thread is held. Stopped tracees count as held, and stay so when they are detached. */
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

  /** Begins to freeze and does not wait: a thread in a fault stops only when its page has come. */
  beginFreezing(): void {
    if (existsSync(this.record.path)) this.#set(true)
  }

  isFrozen(): boolean {
    return isFrozen(this.record)
  }

  /** Idempotent. */
  thaw(): void {
    if (existsSync(this.record.path)) this.#set(false)
  }

  #set(frozen: boolean): void {
    if (this.record.version === 2) writeFileSync(`${this.record.path}/cgroup.freeze`, frozen ? '1' : '0')
    else writeFileSync(`${this.record.path}/freezer.state`, frozen ? 'FROZEN' : 'THAWED')
  }

  /**
   * Thaws, moves the remaining processes home, and removes the cgroup. Idempotent. It is needed after a kill, too: a v1
   * freezer holds even a killed process.
   */
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

  /** Removes the empty cgroup. EBUSY lasts for a moment, until the last process is reaped. */
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

/**
 * The cgroup of a migration as a hold (service/worker/holds.ts). It may contain a workload or a skeleton, perhaps
 * frozen.
 */
export const cgroupHold = {
  name: 'cgroup',
  release: (freezer: Freezer): void => freezer.dissolve(),
  recover: (record: FreezerRecord): void => new Freezer(record).dissolve(),
}
