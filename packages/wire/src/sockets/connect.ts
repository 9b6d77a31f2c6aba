import type { Socket } from 'node:net'
import { PageferryError, RemoteError } from '@pageferry/base'
import { WebSocket } from 'ws'
import {
  closeCodeOf,
  closeReason,
  decodeFrame,
  describeCloseCode,
  encodeFrame,
  frameToError,
  helloTimeoutMs,
  type Lane as LaneKind,
  supportedCompressions,
  supportedVersions,
  WireError,
} from '../index.js'
import { FrameSocket } from './frame-socket.js'
import { Lane, mustBeBinary, webSocketOptions } from './lane.js'
import { connect } from './transport.js'

export interface DialOptions {
  /** `ws://host:port` of the listener that has this lane. */
  url: string
  migrationId: string
  token: string
  kind: LaneKind
  index: number
  resume: boolean
}

export interface Dialled {
  lane: Lane
  nrBulkLanes: number
  /** Port of the fault lane's listener, on the same host. */
  faultPort: number
}

/**
 * Connects one lane and says Hello. The lane is paused until it is opened.
 * @throws RemoteError with the source's refusal, PEER_UNREACHABLE when there is no answer
 */
export function dial(options: DialOptions): Promise<Dialled> {
  const { url, kind, index } = options
  const what = `${kind} lane to ${url}`
  return new Promise((resolve, reject) => {
    const endpoint = new URL(url)
    const frames = kind === 'bulk' ? new FrameSocket(endpoint) : null
    const socket = new WebSocket(url, {
      ...webSocketOptions(kind, 'to-destination'),
      handshakeTimeout: helloTimeoutMs,
      // Any Duplex works (see the documentation of http.request), although the types ask for a Socket.
      createConnection: () => (frames ?? connect(endpoint).socket) as unknown as Socket,
    })
    const timer = setTimeout(
      () => fail(new PageferryError('TIMEOUT', `${what}: no answer to Hello`)),
      helloTimeoutMs,
    )
    const fail = (error: Error): void => {
      clearTimeout(timer)
      reject(error)
      if (!(error instanceof WireError)) {
        socket.terminate()
        return
      }
      socket.resume()
      socket.close(closeCodeOf(error), closeReason(error.message))
    }
    const onError = (error: Error): void =>
      fail(new PageferryError('PEER_UNREACHABLE', `${what}: ${error.message}`, { cause: error }))
    const onClose = (code: number): void =>
      fail(
        new PageferryError('PEER_UNREACHABLE', `${what}: closed (${describeCloseCode(code)?.name ?? code})`),
      )
    socket.on('error', onError)
    socket.on('close', onClose)
    socket.once('open', () => {
      frames?.alignFrames()
      const { migrationId, token, resume } = options
      const versions = [...supportedVersions]
      const compressions = [...supportedCompressions]
      const hello = {
        type: 'hello',
        versions,
        migrationId,
        token,
        lane: kind,
        laneIndex: index,
        resume,
        compressions,
      } as const
      socket.send(encodeFrame(hello), { binary: true })
    })
    socket.once('message', (data: Buffer, isBinary: boolean) => {
      socket.pause()
      try {
        mustBeBinary(isBinary)
        const { frame } = decodeFrame(data, kind, 'to-destination')
        if (frame.type === 'refusal') return fail(new RemoteError('source', frameToError(frame)))
        if (frame.type !== 'welcome')
          throw new WireError('OUT_OF_ORDER', `${what}: ${frame.type} instead of welcome`)
        if (!supportedVersions.includes(frame.version))
          throw new WireError('BAD_VALUE', `${what}: version ${frame.version} was not offered`)
        clearTimeout(timer)
        socket.off('error', onError)
        socket.off('close', onClose)
        const { nrBulkLanes, faultPort, compression, windowBytes } = frame
        const lane = new Lane(socket, kind, index, 'to-destination', { compression, windowBytes })
        resolve({ lane, nrBulkLanes, faultPort })
      } catch (error) {
        fail(error as Error)
      }
    })
  })
}
