/** Program of a worker thread: the fault lane, see fault-messages.ts. */
import { Socket } from 'node:net'
import { parentPort, workerData } from 'node:worker_threads'
import { PageferryError, toErrorInfo } from '@pageferry/base'
import type { Lane } from '@pageferry/service/worker'
import type { FaultThreadData, FromFaultThread, ToFaultThread } from './fault-messages.js'
import { FaultServer } from './fault-server.js'
import { LaneGreeter } from './lane-greeter.js'

const port = parentPort
if (port === null) throw new PageferryError('INTERNAL', 'this is the program of a thread')
const post = (message: FromFaultThread): void => port.postMessage(message)
let current: Lane | null = null
/** By connections that are gone. */
let bytesBefore = 0

/**
 * The worker hears of pages that were sent a little later, of many at once: to wake it for each would take the processor
 * from the next fault. Some of them may be pushed meanwhile.
 */
const servedDelayMs = 2
/** Pairs of page and number of pages. */
let served: number[] = []

function sayServed(): void {
  const bytesSent = bytesBefore + (current?.bytesSent ?? 0)
  post({ type: 'served', pages: Float64Array.from(served), bytesSent })
  served = []
}

const server = new FaultServer({
  onServed: (page, nrPages) => {
    if (served.length === 0) setTimeout(sayServed, servedDelayMs)
    served.push(page, nrPages)
  },
  onDiscarded: (runs) => post({ type: 'discarded', runs }),
})

const greeter = new LaneGreeter({
  ...(workerData as FaultThreadData),
  kinds: ['fault'],
  onLane: (lane, resumed) => {
    bytesBefore += current?.bytesSent ?? 0
    current = lane
    post({ type: 'connected', resumed })
    lane.open({
      onFrame: (frame) => {
        // The codec lets nothing else through on the fault lane to the source.
        if (frame.type === 'pageRequest' || frame.type === 'discard') server.onFrame(lane, frame)
      },
      onLost: (error) => post({ type: 'lost', error: toErrorInfo(error) }),
    })
  },
})

port.on('message', (message: ToFaultThread) => {
  switch (message.type) {
    case 'upgrade': {
      const socket = new Socket({ fd: message.fd, readable: true, writable: true })
      // Until ws has its own handlers.
      socket.on('error', () => socket.destroy())
      greeter.upgrade(message.request, socket, Buffer.from(message.head))
      return
    }
    case 'serve':
      server.serve(message.target)
      return
    case 'pushed':
      server.notePushed(message.runs)
      return
    case 'lost':
      server.noteLost(message.runs)
  }
})
