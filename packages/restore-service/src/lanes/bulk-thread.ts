/** Program of a worker thread: bulk lanes, each with a port to the worker; see bulk-messages.ts. */
import { setPriority } from 'node:os'
import { type MessagePort, parentPort } from 'node:worker_threads'
import { Batcher, PageferryError, toErrorInfo } from '@pageferry/base'
import type { Lane } from '@pageferry/wire/sockets'
import { type DialOptions, dial } from '@pageferry/wire/sockets'
import { BulkInstaller } from './bulk-installer.js'
import type { FromBulkThread, ToBulkThread } from './bulk-messages.js'

/**
 * Applies to this thread only (setpriority(2), "C library/kernel differences"): the thread that serves faults goes
 * first.
 */
const niceness = 5

/** The worker can learn late that a page was installed: threads do not fault on such a page. */
const pushedDelayMs = 4

/** Carries one bulk lane, for as long as the worker lives. */
function carryLane(port: MessagePort): void {
  const pushed = new Batcher<FromBulkThread>(pushedDelayMs, (messages) => port.postMessage(messages))
  const post = (message: FromBulkThread, transfer: ArrayBuffer[] = []): void => {
    if (message.type === 'pushed' && message.batch.payload === undefined) pushed.add(message)
    else port.postMessage([...pushed.take(), message], transfer)
  }
  const installer = new BulkInstaller(post)
  let current: Lane | null = null

  const connect = async (options: DialOptions): Promise<void> => {
    try {
      const { lane } = await dial(options)
      current = lane
      lane.open({
        onFrame: (frame, payload) => {
          // The codec lets nothing else through on a bulk lane to the destination.
          if (frame.type === 'pageBatch') installer.onBatch(lane, frame, payload)
        },
        onLost: (error) => post({ type: 'lost', error: toErrorInfo(error) }),
      })
      post({ type: 'dialled' })
    } catch (error) {
      post({ type: 'notDialled', error: toErrorInfo(error) })
    }
  }

  port.on('message', (message: ToBulkThread) => {
    switch (message.type) {
      case 'dial':
        void connect(message.options)
        return
      case 'open':
        installer.open(message.target)
        return
      case 'close':
        installer.close()
        return
      case 'taken':
        installer.taken(message.sequence, message.bytes)
        return
      case 'refuse':
        current?.close(PageferryError.fromInfo(message.error))
    }
  })
}

if (parentPort === null) throw new PageferryError('INTERNAL', 'this is the program of a thread')
parentPort.on('message', carryLane)
setPriority(niceness)
