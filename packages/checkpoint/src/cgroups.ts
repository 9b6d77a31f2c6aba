import { readFileSync } from 'node:fs'

/*
 * Finds the cgroup of a process, cgroups(7). /proc/PID/cgroup names it from the top of the hierarchy. A mount need not
 * show the top: in a container it often shows only the container's own cgroup.
 */

export type Controller = 'freezer' | 'memory' | 'cpuset'

/** A mounted hierarchy. Version 2 has one for all controllers, each of which may be enabled there or not. */
export interface Hierarchy {
  version: 1 | 2
  mount: string
  /** The cgroup that the mount shows as its top. */
  root: string
}

/** Hierarchies that can have this controller, version 2 first. */
export function hierarchies(controller: Controller): Hierarchy[] {
  // proc_pid_mountinfo(5): id, parent, device, root, mount point, ..., type, source, options of the file system
  const mounts = readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .map((line) => line.split(' '))
  const v2 = mounts.find((fields) => fields.at(-3) === 'cgroup2')
  const v1 = mounts.find(
    (fields) => fields.at(-3) === 'cgroup' && fields.at(-1)?.split(',').includes(controller),
  )
  const found: Hierarchy[] = []
  if (v2 !== undefined) found.push({ version: 2, mount: v2[4], root: v2[3] })
  if (v1 !== undefined) found.push({ version: 1, mount: v1[4], root: v1[3] })
  return found
}

/** The cgroup of a process, from the top of the hierarchy; null when it has none there. */
export function cgroupOf(pid: number, { version }: Hierarchy, controller: Controller): string | null {
  for (const line of readFileSync(`/proc/${pid}/cgroup`, 'utf8').split('\n')) {
    const [id, controllers, ...path] = line.split(':')
    if (version === 2 ? id === '0' && controllers === '' : controllers?.split(',').includes(controller)) {
      return path.join(':')
    }
  }
  return null
}

/** The directory of a cgroup; null when the mount does not show it. */
export function directoryOf(cgroup: string, { mount, root }: Hierarchy): string | null {
  const hidden = root === '/' ? '' : root
  if (cgroup !== hidden && !cgroup.startsWith(`${hidden}/`)) return null
  return `${mount}${cgroup.slice(hidden.length)}`.replace(/\/$/, '')
}
