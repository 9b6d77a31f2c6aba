import type { HostFacts } from '@pageferry/wire'
import type { ErrorMessage, FromDestination, FromSource, ToDestination, ToSource } from '../src/index.js'

/** One message of every type, as the drivers would make it. The machines read no more than its type, error and reason. */

type Samples<M extends { type: string }> = {
  [K in M['type']]: K extends ErrorMessage['type'] ? ErrorMessage : Extract<M, { type: K }>
}

const error = { code: 'REMOTE', message: 'sample' } as const
const host: HostFacts = {
  kernelRelease: '6.1.0',
  machine: 'x86_64',
  bootId: 'boot',
  vdsoSha256: new Uint8Array(0),
  xcr0: 7n,
  xsaveBytes: 576,
  cpuFlags: [],
  vdsoPages: 2,
  vvarPages: 4,
}

const TO_SOURCE: Samples<ToSource> = {
  prepared: { type: 'prepared', destination: host, pid: 7 },
  roundApplied: { type: 'roundApplied', asId: 1, round: 1, pages: 1, durationMs: 1 },
  ready: { type: 'ready', restoreMs: 1, partsJson: '' },
  running: { type: 'running', resumeMs: 1, pid: 7 },
  progress: { type: 'progress', pendingPages: 1, faults: 0, installedPages: 0 },
  drained: { type: 'drained' },
  abandoned: { type: 'abandoned', reason: '' },
  cancel: { type: 'cancel', error },
  failed: { type: 'failed', error },
  clockRequest: { type: 'clockRequest' },
}

const TO_DESTINATION: Samples<ToDestination> = {
  begin: {
    type: 'begin',
    source: host,
    asId: 1,
    pid: 7,
    comm: 'sample',
    tids: [7],
    residentPages: 1,
    mode: 'hybrid',
    verify: 'off',
    files: [],
    monotonicNs: 0n,
    boottimeNs: 0n,
  },
  dumpEnd: { type: 'dumpEnd', freezeMonotonicNs: 0n },
  commit: { type: 'commit' },
  released: { type: 'released' },
  kept: { type: 'kept' },
  cancel: { type: 'cancel', error },
  failed: { type: 'failed', error },
  clockReply: {
    type: 'clockReply',
    monotonicNs: 0n,
    boottimeNs: 0n,
    kernelMonotonicNs: 0n,
    kernelBoottimeNs: 0n,
  },
}

const SAMPLES = { ...TO_SOURCE, ...TO_DESTINATION }

/** Everything that either machine may be told. */
export const ALL_MESSAGES: readonly (ToSource | ToDestination)[] = [
  ...Object.values(TO_SOURCE),
  ...Object.values(TO_DESTINATION),
]

export function toSource(type: ToSource['type']) {
  return { type: 'message', message: TO_SOURCE[type] } as const
}

export function toDestination(type: ToDestination['type']) {
  return { type: 'message', message: TO_DESTINATION[type] } as const
}

/** What the peer's driver makes of what a machine sends. */
export function onTheWay(message: FromSource): ToDestination
export function onTheWay(message: FromDestination): ToSource
export function onTheWay(message: FromSource | FromDestination): ToSource | ToDestination {
  switch (message.type) {
    case 'abandoned':
    case 'cancel':
    case 'failed':
    case 'drained':
      return message
  }
  return SAMPLES[message.type]
}
