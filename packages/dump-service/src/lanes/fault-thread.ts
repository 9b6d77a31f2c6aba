/** Program of a worker thread: the fault lane, see fault-messages.ts. */
import { parentPort, workerData } from 'node:worker_threads'
import { PageferryError, toErrorInfo } from '@pageferry/base'
import type { Lane } from '@pageferry/wire/sockets'
import { LaneServer } from '@pageferry/wire/sockets'
import { FaultFeed } from '../lazy/fault-feed.js'
import { FaultServer } from '../lazy/fault-server.js'
import type { FaultThreadData, FromFaultThread, ToFaultThread } from './fault-messages.js'

const port = parentPort
if (port === null) throw new PageferryError('INTERNAL', 'this is the program of a thread')
const post = (message: FromFaultThread): void => port.postMessage(message)

const { feed, compress = false, ...listening } = workerData as FaultThreadData
const server = new FaultServer(new FaultFeed(feed))
server.compress(compress)

function onLane(lane: Lane, resumed: boolean): void {
  post({ type: 'connected', resumed })
  lane.open({
    onFrame: (frame) => {
      // The codec rejects all other frames on the fault lane to the source.
      if (frame.type === 'pageRequest' || frame.type === 'discard') server.onFrame(lane, frame)
    },
    onLost: (error) => post({ type: 'lost', error: toErrorInfo(error) }),
  })
}

port.on('message', (message: ToFaultThread) => {
  switch (message.type) {
    case 'serve':
      server.serve(message.target)
      return
    case 'compress':
      server.compress(message.isOn)
  }
})

LaneServer.listen({ ...listening, kinds: ['fault'], onLane }).then(
  ({ port: faultPort }) => post({ type: 'listening', port: faultPort }),
  (error: unknown) => post({ type: 'notListening', error: toErrorInfo(error) }),
)
