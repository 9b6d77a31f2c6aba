import { performance } from 'node:perf_hooks'
import type { Logger } from '@pageferry/base'
import { type PhaseName, Phases, parseFault } from '@pageferry/migration'
import type { Role } from '../api/roles.js'
import type { StatusReporter } from './status-reporter.js'

export interface WorkerPhasesOptions {
  role: Role
  log: Logger
  status: StatusReporter
  /** The fault of the request. */
  injectFault: string | undefined
  takeover: boolean
}

/** The phases of a worker process: shown, logged, and interrupted by the requested fault. */
export function workerPhases({ role, log, status, injectFault, takeover }: WorkerPhasesOptions): Phases {
  return new Phases(
    {
      now: () => performance.now(),
      sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
      crash: () => process.kill(process.pid, 'SIGKILL'),
      onStart: (phase: PhaseName) => status.show({ phase }),
      onEnd: ({ phase, durationMs, error }) =>
        log.info({ phase, durationMs, error: error?.message }, 'phase ended'),
    },
    // A fault strikes once: the worker that takes over after a crash must be able to succeed.
    injectFault === undefined || takeover ? [] : [parseFault(injectFault, role)],
  )
}
