/**
 * Server-sent events for both ends (WHATWG HTML, "Server-sent events"): encoder and parser of the subset without ids
 * and retry times.
 */

/** A status is never nearly this long. A peer that sends more is not one of our services. */
export const maxEventBytes = 4 * 1024 * 1024

export interface ServerEvent {
  event: string
  data: string
}

export function formatEvent(event: string, data: unknown): string {
  // JSON has no raw line breaks, so one data line is always enough.
  return `event: ${event}\ndata: ${JSON.stringify(data)}\n\n`
}

/** A comment line: keeps idle connections open and tells the reader that the writer lives. */
export const heartbeat = ': heartbeat\n\n'

/** Incremental parser; the text may be cut anywhere. */
export class EventParser {
  #rest = ''
  #event = ''
  #data: string[] = []

  /** @throws RangeError when an event grows beyond `maxEventBytes`. */
  push(text: string): ServerEvent[] {
    const events: ServerEvent[] = []
    const lines = (this.#rest + text).split('\n')
    this.#rest = lines.pop() ?? ''
    if (this.#rest.length > maxEventBytes) throw new RangeError('an event is larger than 4 MiB')
    for (const raw of lines) {
      const line = raw.endsWith('\r') ? raw.slice(0, -1) : raw
      if (line === '') {
        if (this.#data.length > 0) {
          events.push({ event: this.#event || 'message', data: this.#data.join('\n') })
        }
        this.#event = ''
        this.#data = []
        continue
      }
      const colon = line.indexOf(':')
      const field = colon === -1 ? line : line.slice(0, colon)
      const value = colon === -1 ? '' : line.slice(colon + 1).replace(/^ /, '')
      if (field === 'event') this.#event = value
      else if (field === 'data') this.#data.push(value)
    }
    return events
  }
}
