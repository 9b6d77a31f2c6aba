import type { ServerResponse } from 'node:http'
import { isFinal, type Status } from '../api/schemas.js'
import { formatEvent, heartbeat } from '../client/event-stream.js'
import type { Limits } from './limits.js'

/** Status for a client to follow: the one of now, and every later one. */
export interface StatusFeed {
  readonly status: Status
  /** @returns a function that ends the subscription. */
  subscribe(listener: (status: Status) => void): () => void
}

/**
 * Sends a migration's statuses to one client as server-sent events until the last one.
 *
 * Each status contains everything of the earlier ones, so a slow client loses nothing by getting only the newest. Per
 * client at most one status waits here, beyond the bytes that the socket has accepted (its high-water mark is 16 KiB).
 *
 * @returns a promise that is resolved when the connection is over, for whatever reason.
 */
export function streamStatus(response: ServerResponse, feed: StatusFeed, limits: Limits): Promise<void> {
  let waiting: Status | undefined
  let blockedSince: number | undefined

  const send = (status: Status) => {
    if (response.writableEnded || response.destroyed) return
    if (blockedSince !== undefined) {
      waiting = status
      return
    }
    if (!response.write(formatEvent('status', status))) blockedSince = Date.now()
    if (isFinal(status)) response.end()
  }
  const tick = () => {
    if (response.writableEnded) return
    if (blockedSince === undefined) {
      if (!response.write(heartbeat)) blockedSince = Date.now()
    } else if (Date.now() - blockedSince > limits.stalledClientMs) {
      response.destroy()
    }
  }

  response.writeHead(200, {
    'content-type': 'text/event-stream; charset=utf-8',
    'cache-control': 'no-store',
    // otherwise nginx would buffer the events
    'x-accel-buffering': 'no',
  })
  const unsubscribe = feed.subscribe(send)
  const timer = setInterval(tick, limits.heartbeatMs)
  response.on('drain', () => {
    blockedSince = undefined
    const next = waiting
    waiting = undefined
    if (next !== undefined) send(next)
  })
  const done = new Promise<void>((resolve) => {
    response.on('close', () => {
      clearInterval(timer)
      unsubscribe()
      resolve()
    })
  })
  send(feed.status)
  return done
}
