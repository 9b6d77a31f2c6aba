/** Program of a worker thread: the fault lane, see fault-messages.ts. */
import { parentPort, workerData } from 'node:worker_threads'
import { Batcher, PageferryError, toErrorInfo } from '@pageferry/base'
import type { Lane } from '@pageferry/wire/sockets'
import { LaneServer } from '@pageferry/wire/sockets'
import { FaultServer } from '../lazy/fault-server.js'
import type { FaultThreadData, FromFaultThread, ToFaultThread } from './fault-messages.js'

const port = parentPort
if (port === null) throw new PageferryError('INTERNAL', 'this is the program of a thread')
const post = (message: FromFaultThread): void => port.postMessage(message)
let current: Lane | null = null
/** By connections that are gone. */
let bytesBefore = 0

/** Some of what was served may be pushed meanwhile. */
const servedDelayMs = 2
/** Pairs of page and number of pages. */
const served = new Batcher<[number, number]>(servedDelayMs, (pairs) => {
  const bytesSent = bytesBefore + (current?.bytesSent ?? 0)
  const { compressed } = server
  post({ type: 'served', pages: Float64Array.from(pairs.flat()), bytesSent, compressed })
})

const server = new FaultServer({
  onServed: (page, nrPages) => served.add([page, nrPages]),
  onDiscarded: (runs) => post({ type: 'discarded', runs }),
})

const { compress = false, ...listening } = workerData as FaultThreadData
server.compress(compress)

function onLane(lane: Lane, resumed: boolean): void {
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
}

LaneServer.listen({ ...listening, kinds: ['fault'], onLane }).then(
  ({ port: faultPort }) => post({ type: 'listening', port: faultPort }),
  (error: unknown) => post({ type: 'notListening', error: toErrorInfo(error) }),
)

port.on('message', (messages: ToFaultThread[]) => messages.forEach(onMessage))

function onMessage(message: ToFaultThread): void {
  switch (message.type) {
    case 'serve':
      server.serve(message.target)
      return
    case 'pushed':
      server.notePushed(message.runs)
      return
    case 'lost':
      server.noteLost(message.runs)
      return
    case 'compress':
      server.compress(message.isOn)
  }
}
