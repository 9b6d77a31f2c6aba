import type { Frame, FrameOf, FrameType } from './frames.js'
import {
  lengthPrefixBytes,
  maxControlHeaderBytes,
  maxHelloBytes,
  maxPageHeaderBytes,
  maxPayloadBytes,
} from './limits.js'

export const LANES = ['control', 'fault', 'bulk'] as const

/**
 * `control`: messages of the state machines. `fault`: requests and replies for faulting pages; nothing else ever queues
 * on it. `bulk`, one or more: page batches.
 */
export type Lane = (typeof LANES)[number]

/** The source is the WebSocket server; the destination dials. */
export type Direction = 'to-source' | 'to-destination'

/** Content behind the header. Its length always follows from the header, see `payloadBytesOf`. */
export type PayloadKind = 'none' | 'pages' | 'hashes' | 'image-piece' | 'file-piece'

export interface Route<D extends Direction = Direction, L extends Lane = Lane> {
  readonly directions: readonly D[]
  readonly lanes: readonly L[]
  readonly payload: PayloadKind
}

function route<D extends Direction, L extends Lane>(
  directions: D | readonly D[],
  lanes: L | readonly L[],
  payload: PayloadKind = 'none',
): Route<D, L> {
  return { directions: [directions].flat() as D[], lanes: [lanes].flat() as L[], payload }
}

const BOTH = ['to-source', 'to-destination'] as const

/** The lanes and directions of each frame. Everything else is refused. */
export const ROUTES = {
  hello: route('to-source', LANES),
  welcome: route('to-destination', LANES),
  refusal: route('to-destination', LANES),

  begin: route('to-destination', 'control'),
  prepared: route('to-source', 'control'),
  image: route('to-destination', 'control', 'image-piece'),
  ghost: route('to-destination', 'control'),
  ghostData: route('to-destination', 'control', 'file-piece'),
  ghostGone: route('to-destination', 'control'),
  roundBegin: route('to-destination', 'control'),
  roundEnd: route('to-destination', 'control'),
  roundApplied: route('to-source', 'control'),
  dumpEnd: route('to-destination', 'control'),
  ready: route('to-source', 'control'),
  commit: route('to-destination', 'control'),
  running: route('to-source', 'control'),
  progress: route('to-source', 'control'),
  drained: route('to-source', 'control'),
  released: route('to-destination', 'control'),
  kept: route('to-destination', 'control'),
  abandoned: route('to-source', 'control'),
  cancel: route(BOTH, 'control'),
  failed: route(BOTH, 'control'),
  clockRequest: route('to-source', 'control'),
  clockReply: route('to-destination', 'control'),
  hashRequest: route('to-source', 'control'),
  pageHashes: route('to-destination', 'control', 'hashes'),

  pageRequest: route('to-source', 'fault'),
  pageReply: route('to-destination', 'fault', 'pages'),
  discard: route('to-source', 'fault'),

  pageBatch: route('to-destination', 'bulk', 'pages'),
  batchAck: route('to-source', 'bulk'),
} as const satisfies Record<FrameType, Route>

type Routes = typeof ROUTES

/** The frames that a lane carries in one direction, as a type: `FrameOn<'control', 'to-source'>`. */
export type FrameOn<L extends Lane, D extends Direction> = {
  [K in FrameType]: D extends Routes[K]['directions'][number]
    ? L extends Routes[K]['lanes'][number]
      ? FrameOf<K>
      : never
    : never
}[FrameType]

/** Narrows a frame's type by the checks of `decodeFrame`. */
export function isFrameOn<L extends Lane, D extends Direction>(
  frame: Frame,
  lane: L,
  direction: D,
): frame is FrameOn<L, D> {
  return isAllowed(frame.type, lane, direction)
}

export function isAllowed(type: FrameType, lane: Lane, direction: Direction): boolean {
  const { lanes, directions }: Route = ROUTES[type]
  return lanes.includes(lane) && directions.includes(direction)
}

/**
 * Bytes of the largest header of a frame of this type. Headers of frames with a payload fit the reserve of a pooled
 * buffer.
 */
export function maxHeaderBytes(type: FrameType): number {
  const { lanes, payload }: Route = ROUTES[type]
  if (type === 'hello') return maxHelloBytes - lengthPrefixBytes
  return payload === 'none' && lanes.includes('control') ? maxControlHeaderBytes : maxPageHeaderBytes
}

/** Bytes of the largest header and the largest message that a lane may carry in one direction. */
export interface LaneLimits {
  readonly headerBytes: number
  readonly messageBytes: number
}

function limitsOf(lane: Lane, direction: Direction): LaneLimits {
  let headerBytes = 0
  let messageBytes = 0
  for (const type of Object.keys(ROUTES) as FrameType[]) {
    if (!isAllowed(type, lane, direction)) continue
    const header = maxHeaderBytes(type)
    const payload = ROUTES[type].payload === 'none' ? 0 : maxPayloadBytes
    headerBytes = Math.max(headerBytes, header)
    messageBytes = Math.max(messageBytes, lengthPrefixBytes + header + payload)
  }
  return { headerBytes, messageBytes }
}

const LANE_LIMITS: Readonly<Record<Direction, Readonly<Record<Lane, LaneLimits>>>> = {
  'to-source': limitsToward('to-source'),
  'to-destination': limitsToward('to-destination'),
}

function limitsToward(direction: Direction): Record<Lane, LaneLimits> {
  return {
    control: limitsOf('control', direction),
    fault: limitsOf('fault', direction),
    bulk: limitsOf('bulk', direction),
  }
}

/** `messageBytes` is the `maxPayload` that the receiver passes to ws. */
export function laneLimits(lane: Lane, direction: Direction): LaneLimits {
  return LANE_LIMITS[direction][lane]
}
