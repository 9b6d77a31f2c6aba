import type { ServiceMessage, WorkerMessage, WorkerSpec } from './ipc.js'

/** A worker's end of the channel to its service. */
export interface WorkerChannel {
  send(message: WorkerMessage): void
  /** Resolves when the record would survive the service's death. */
  record(record: Record<string, unknown>): Promise<void>
  onCancel(handler: () => void): void
  /** Ends this process when everything said so far has been handed over. */
  exit(code: number): void
}

/**
 * Runs a worker program: waits for the first message, then calls `main`. Crash-only: when the service dies the
 * channel closes and this process ends at once, without undoing anything; its successor does that.
 */
export function runWorker<Request>(
  main: (spec: WorkerSpec<Request>, takeover: boolean, channel: WorkerChannel) => void,
): void {
  let sequence = 0
  const waiting = new Map<number, () => void>()
  let cancel: () => void = () => {}
  let cancelled = false
  const channel: WorkerChannel = {
    send(message) {
      process.send?.(message)
    },
    record(record) {
      const seq = ++sequence
      return new Promise((resolve) => {
        waiting.set(seq, resolve)
        process.send?.({ type: 'record', record, seq } satisfies WorkerMessage)
      })
    },
    onCancel(handler) {
      cancel = handler
      if (cancelled) handler()
    },
    exit(code) {
      if (process.connected) process.disconnect()
      process.exitCode = code
      setImmediate(() => process.exit(code))
    },
  }
  process.on('disconnect', () => process.exit(1))
  // Ctrl-C in a terminal reaches the whole group; what it means is the service's decision.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {})
  process.on('message', (message: ServiceMessage<Request>) => {
    switch (message.type) {
      case 'start':
      case 'takeover':
        main(message.spec, message.type === 'takeover', channel)
        return
      case 'cancel':
        cancelled = true
        cancel()
        return
      case 'recorded':
        waiting.get(message.seq)?.()
        waiting.delete(message.seq)
        return
    }
  })
}
