import { ERROR_CODES } from '@pageferry/base'
import type protobuf from 'protobufjs'
import t from 'tap'
import { FRAMES } from '../src/frames/frames.js'
import {
  ERROR_CLOSE_CODES,
  FRAME_TYPES,
  LANES,
  laneLimits,
  maxFrameBytes,
  ROUTES,
  WIRE_FAULTS,
} from '../src/index.js'
import { frameType, root } from './support/naive.js'

/** Numbers on the wire never change once released: a change here is a new protocol version. */
const bodyNumbers = {
  ...{ hello: 1, welcome: 2, begin: 3, prepared: 4, image: 5, roundBegin: 6, roundEnd: 7, roundApplied: 8 },
  ...{
    dumpEnd: 9,
    ready: 10,
    commit: 11,
    running: 12,
    progress: 13,
    drained: 14,
    released: 15,
    abandoned: 16,
  },
  ...{
    cancel: 17,
    failed: 18,
    clockRequest: 19,
    clockReply: 20,
    pageHashes: 21,
    refusal: 22,
    hashRequest: 23,
    kept: 24,
  },
  ...{ ghost: 25, ghostData: 26, ghostGone: 27 },
  ...{ pageRequest: 30, pageReply: 31, pageBatch: 40, batchAck: 41, discard: 42 },
}

t.test('the .proto, the frame table and the routes name the same frames', async (t) => {
  const inProto = Object.fromEntries(Object.values(frameType.fields).map((field) => [field.name, field.id]))
  t.same(inProto, bodyNumbers)
  t.same(frameType.oneofs.body.oneof.toSorted(), Object.keys(inProto).toSorted(), 'every field is a body')
  t.same(FRAME_TYPES.toSorted(), Object.keys(inProto).toSorted())
  t.same(Object.keys(ROUTES).toSorted(), Object.keys(inProto).toSorted())
})

t.test('every field of every message is in the frame table', async (t) => {
  for (const type of FRAME_TYPES) {
    const message = frameType.fields[type].resolvedType as protobuf.Type
    t.same(Object.keys(FRAMES[type]).toSorted(), Object.keys(message.fields).toSorted(), type)
  }
})

t.test('an enum value n is the nth lane', async (t) => {
  const lane = root.lookupEnum('pageferry.wire.Lane')
  t.same(
    LANES.map((name) => lane.values[`LANE_${name.toUpperCase()}`]),
    [1, 2, 3],
  )
  t.equal(Object.keys(lane.values).length, LANES.length + 1)
})

t.test('close codes are unique, complete and in the range for applications', async (t) => {
  const codes = [
    ...Object.values(ERROR_CLOSE_CODES),
    ...Object.values(WIRE_FAULTS).map((fault) => fault.closeCode),
  ]
  t.equal(new Set(codes).size, codes.length)
  t.ok(codes.every((code) => code >= 4000 && code <= 4999))
  t.same(Object.keys(ERROR_CLOSE_CODES).toSorted(), Object.keys(ERROR_CODES).toSorted())
})

t.test('lane limits: only what carries a payload takes large messages', async (t) => {
  t.equal(laneLimits('bulk', 'to-source').messageBytes, 4 + 16 * 1024)
  t.equal(laneLimits('fault', 'to-source').messageBytes, 4 + 16 * 1024)
  t.equal(laneLimits('bulk', 'to-destination').messageBytes, maxFrameBytes)
  t.equal(laneLimits('fault', 'to-destination').messageBytes, maxFrameBytes)
  t.equal(laneLimits('control', 'to-destination').messageBytes, maxFrameBytes)
  t.equal(laneLimits('control', 'to-source').messageBytes, 4 + 1024 * 1024)
})
