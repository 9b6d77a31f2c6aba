import { PageferryError, seededRandom } from '@pageferry/base'
import type { PhaseName } from './phases.js'

export type FaultKind = 'crash' | 'error' | 'delay'

/**
 * Places between the moments of a phase. fork-event: the kernel has put a child's userfaultfd into our descriptor
 * table, and no other process has it yet.
 */
export type FaultPoint = 'fork-event'

/** One injected fault. `seed` chooses the moment and the length, so a printed seed replays the failure. */
export interface FaultSpec {
  readonly phase: PhaseName
  /** crash: the worker kills itself. error: the phase fails. delay: the phase takes longer. */
  readonly kind: FaultKind
  readonly seed: number
  /** It strikes there (`Phases.reach`), and not at the moment that the seed chooses. */
  readonly point?: FaultPoint
}

interface ShippedFault {
  number: number
  phase: PhaseName
  side: 'source' | 'destination'
  kind: FaultKind
  point?: FaultPoint
}

/**
 * The shipped faults, by number. Numbers are stable: tests, reports and issues name them. A fault in a phase of one
 * side is injected into that side's worker.
 */
export const FAULTS = {
  'source-crash-prepare': { number: 1, phase: 'prepare', side: 'source', kind: 'crash' },
  'source-crash-round': { number: 2, phase: 'round', side: 'source', kind: 'crash' },
  'source-crash-freeze': { number: 3, phase: 'freeze', side: 'source', kind: 'crash' },
  'source-crash-capture': { number: 4, phase: 'capture', side: 'source', kind: 'crash' },
  'source-crash-transfer': { number: 5, phase: 'transfer', side: 'source', kind: 'crash' },
  'source-crash-commit': { number: 6, phase: 'commit', side: 'source', kind: 'crash' },
  'source-crash-serve': { number: 7, phase: 'serve', side: 'source', kind: 'crash' },
  'source-error-round': { number: 8, phase: 'round', side: 'source', kind: 'error' },
  'source-error-freeze': { number: 9, phase: 'freeze', side: 'source', kind: 'error' },
  'source-error-capture': { number: 10, phase: 'capture', side: 'source', kind: 'error' },
  'source-error-transfer': { number: 11, phase: 'transfer', side: 'source', kind: 'error' },
  'source-delay-round': { number: 12, phase: 'round', side: 'source', kind: 'delay' },
  'source-delay-commit': { number: 13, phase: 'commit', side: 'source', kind: 'delay' },
  'source-delay-serve': { number: 14, phase: 'serve', side: 'source', kind: 'delay' },
  'destination-crash-skeleton': { number: 20, phase: 'skeleton', side: 'destination', kind: 'crash' },
  'destination-crash-receive': { number: 21, phase: 'receive', side: 'destination', kind: 'crash' },
  'destination-crash-restore': { number: 22, phase: 'restore', side: 'destination', kind: 'crash' },
  'destination-crash-resume': { number: 23, phase: 'resume', side: 'destination', kind: 'crash' },
  'destination-crash-postcopy': { number: 24, phase: 'postcopy', side: 'destination', kind: 'crash' },
  'destination-error-skeleton': { number: 25, phase: 'skeleton', side: 'destination', kind: 'error' },
  'destination-error-receive': { number: 26, phase: 'receive', side: 'destination', kind: 'error' },
  'destination-error-restore': { number: 27, phase: 'restore', side: 'destination', kind: 'error' },
  'destination-error-resume': { number: 28, phase: 'resume', side: 'destination', kind: 'error' },
  'destination-delay-receive': { number: 29, phase: 'receive', side: 'destination', kind: 'delay' },
  'destination-delay-restore': { number: 30, phase: 'restore', side: 'destination', kind: 'delay' },
  'destination-delay-resume': { number: 31, phase: 'resume', side: 'destination', kind: 'delay' },
  'destination-delay-postcopy': { number: 32, phase: 'postcopy', side: 'destination', kind: 'delay' },
  'destination-crash-fork': {
    number: 33,
    phase: 'postcopy',
    side: 'destination',
    kind: 'crash',
    point: 'fork-event',
  },
} as const satisfies Record<string, ShippedFault>

export type FaultName = keyof typeof FAULTS

/** @returns the spec of a named fault, or undefined when there is none of that name. */
export function faultNamed(name: string, seed: number): FaultSpec | undefined {
  if (!Object.hasOwn(FAULTS, name)) return undefined
  const { phase, kind, point }: ShippedFault = FAULTS[name as FaultName]
  return { phase, kind, seed, ...(point && { point }) }
}

/**
 * Parses the `injectFault` of a request: "name" or "name:seed".
 * @throws BAD_REQUEST for an unknown name, or for a fault of the other side
 */
export function parseFault(text: string, side: 'source' | 'destination'): FaultSpec {
  const [name, seed = '1'] = text.split(':')
  const fault = /^\d{1,9}$/.test(seed) ? faultNamed(name, Number(seed)) : undefined
  if (fault === undefined || FAULTS[name as FaultName].side !== side) {
    throw new PageferryError('BAD_REQUEST', `there is no fault "${text}" to inject on the ${side}`)
  }
  return fault
}

export type FaultMoment = 'before' | 'during' | 'after'

export interface FaultPlan {
  readonly moment: FaultMoment
  /** Length of a delay, or how far into the phase a crash happens. */
  readonly waitMs: number
}

/** Longest injected wait: shorter than every protocol timeout, so that a delay alone never fails a migration. */
export const maxFaultWaitMs = 250

/**
 * Derives time and length from the seed alone. An error cannot strike in the middle of code that does not check for it.
 */
export function planFault(fault: FaultSpec): FaultPlan {
  const random = seededRandom(fault.seed)
  const moments: FaultMoment[] = fault.kind === 'crash' ? ['before', 'during', 'after'] : ['before', 'after']
  const moment = moments[Math.floor(random() * moments.length)]
  // Squared: most phases are short, so most crashes should come early enough to hit them.
  const waitMs = Math.round(random() ** 2 * maxFaultWaitMs * 100) / 100
  return { moment, waitMs }
}
