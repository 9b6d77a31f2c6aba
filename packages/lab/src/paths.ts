import { join } from 'node:path'
import { PageferryError, packageRoot } from '@pageferry/base'

export type HostName = 'a' | 'b'
export const hostNames: readonly HostName[] = ['a', 'b']

/** Directory of the labs' state. It is gone after a reboot, like the labs. */
export const labsDir = '/run/pageferry/labs'

/** One file per subnet number in use. Creating it exclusively reserves the number. */
export const subnetsDir = '/run/pageferry/subnets'

/**
 * The program behind `npx pageferry`, which also starts the services and the warden of a lab. It is in the package
 * beside this one, in a checkout as in an installation. An import would load the command line into every user of a lab.
 */
export const pageferryProgram = join(packageRoot('lab'), '../cli/bin/pageferry.js')

/** A lab's name becomes a directory and a cgroup: one plain path component, short enough for UNIX socket paths. */
const validName = /^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$/

export function labDir(name: string): string {
  if (!validName.test(name)) {
    throw new PageferryError(
      'BAD_REQUEST',
      `"${name}" cannot name a lab: use up to 40 letters, digits, "-" and "_", beginning with a letter or digit`,
    )
  }
  return join(labsDir, name)
}

export function hostDir(name: string, host: HostName): string {
  return join(labDir(name), host)
}

/** Output of a process started in the lab, named by its pid as that host sees it. */
export function outputFile(name: string, host: HostName, pid: number): string {
  return join(hostDir(name, host), 'out', `${pid}.log`)
}

export function hostAddress(subnet: number, host: HostName): string {
  return `10.77.${subnet}.${host === 'a' ? 1 : 2}`
}
