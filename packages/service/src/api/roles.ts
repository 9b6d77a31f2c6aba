/** The two roles of a service, and the defaults of each. */

export const ROLES = ['source', 'destination'] as const
export type Role = (typeof ROLES)[number]

/** The program's name of each role, in sentences for users. */
export const SERVICE_NAMES = { source: 'dump-service', destination: 'restore-service' } as const

/** TCP ports of the two APIs. */
export const SERVICE_PORTS: Readonly<Record<Role, number>> = { source: 7421, destination: 7422 }

/**
 * Directories of journals, records and images of migrations. Both services may run on one machine, so each has its own.
 */
export const STATE_DIRS: Readonly<Record<Role, string>> = {
  source: '/var/lib/pageferry/source',
  destination: '/var/lib/pageferry/destination',
}
