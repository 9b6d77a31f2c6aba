import { toErrorInfo } from '@pageferry/base'
import type { ServiceMessage, WorkerMessage, WorkerSpec } from './ipc.js'

/** A worker's end of the channel to its service. */
export interface WorkerChannel {
  /**
   * This process was a spare that has rehearsed: its code has run once, and this host has proved that it can migrate.
   */
  readonly isRehearsed: boolean
  send(message: WorkerMessage): void
  /** Resolves when the record would survive the service's death. */
  record(record: Record<string, unknown>): Promise<void>
  onCancel(handler: () => void): void
  /** Ends this process after all messages so far have been handed over. */
  exit(code: number): void
}

export interface WorkerProgram<Request> {
  /**
   * Runs in a spare worker while there is no migration. It must hold nothing of the host when it has settled.
   * @param directory for its own use; it must create it
   * @param signal fires when a migration waits: stop at the next opportunity
   * @throws when this host cannot do it
   */
  rehearse(directory: string, signal: AbortSignal): Promise<void>
  main(spec: WorkerSpec<Request>, takeover: boolean, channel: WorkerChannel): void
}

/**
 * Runs a worker program: waits for a migration, perhaps as a spare worker that rehearses meanwhile. Crash-only: when
 * the service dies the channel closes, and this process ends at once without undoing anything. Its successor does that.
 */
export function runWorker<Request>(program: WorkerProgram<Request>): void {
  let sequence = 0
  const waiting = new Map<number, () => void>()
  let cancel: () => void = () => {}
  let cancelled = false
  let isRehearsed = false
  let rehearsal: Promise<void> = Promise.resolve()
  const migrationWaits = new AbortController()
  /** Messages that the pipe has not taken yet. */
  let nrUnsent = 0
  let onSent = (): void => {}
  const send = (message: WorkerMessage): void => {
    nrUnsent++
    process.send?.(message, undefined, undefined, () => {
      nrUnsent--
      onSent()
    })
  }
  const channel: WorkerChannel = {
    get isRehearsed() {
      return isRehearsed
    },
    send,
    record(record) {
      const seq = ++sequence
      return new Promise((resolve) => {
        waiting.set(seq, resolve)
        send({ type: 'record', record, seq })
      })
    },
    onCancel(handler) {
      cancel = handler
      if (cancelled) handler()
    },
    exit(code) {
      process.exitCode = code
      onSent = () => {
        if (nrUnsent > 0) return
        if (process.connected) process.disconnect()
        setImmediate(() => process.exit(code))
      }
      onSent()
    },
  }
  const rehearse = async (directory: string): Promise<void> => {
    const { signal } = migrationWaits
    try {
      await program.rehearse(directory, signal)
      isRehearsed = !signal.aborted
      if (isRehearsed) send({ type: 'rehearsed' })
    } catch (error) {
      // The migration, if there is one, tries again and reports the error.
      if (!signal.aborted) send({ type: 'unfit', error: toErrorInfo(error) })
    }
  }
  const begin = async ({
    type,
    spec,
  }: Extract<ServiceMessage<Request>, { spec: unknown }>): Promise<void> => {
    migrationWaits.abort()
    await rehearsal
    // For ps(1): a spare worker was started without the id.
    process.title = `pageferry-worker ${spec.id}`
    program.main(spec, type === 'takeover', channel)
  }
  process.on('disconnect', () => process.exit(1))
  // Ctrl-C in a terminal reaches the whole group. The service decides what it means.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {})
  process.on('message', (message: ServiceMessage<Request>) => {
    switch (message.type) {
      case 'rehearse':
        rehearsal = rehearse(message.directory)
        return
      case 'start':
      case 'takeover':
        void begin(message)
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
