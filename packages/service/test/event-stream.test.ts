import t from 'tap'
import { EventParser, formatEvent, heartbeat, maxEventBytes } from '../src/client/event-stream.js'

const stream = formatEvent('status', { text: 'a\nb: ü' }) + heartbeat + formatEvent('status', { n: 2 })
const events = [
  { event: 'status', data: '{"text":"a\\nb: ü"}' },
  { event: 'status', data: '{"n":2}' },
]

t.test('the bytes of an event', async (t) => {
  t.equal(formatEvent('status', { n: 1 }), 'event: status\ndata: {"n":1}\n\n')
})

t.test('parsed the same when split at every position', async (t) => {
  for (let at = 0; at <= stream.length; at++) {
    const parser = new EventParser()
    const found = [...parser.push(stream.slice(0, at)), ...parser.push(stream.slice(at))]
    t.same(found, events, `split at ${at}`)
  }
})

t.test('what other servers may send', async (t) => {
  const parser = new EventParser()
  t.same(
    parser.push('data:x\r\ndata: y\r\n\r\n'),
    [{ event: 'message', data: 'x\ny' }],
    'CRLF, several lines, no name',
  )
  t.same(
    parser.push('event: e\n\nretry: 5\nid\ndata\n\n'),
    [{ event: 'message', data: '' }],
    'no data, no event',
  )
})

t.test('an event without end is not collected for ever', async (t) => {
  const parser = new EventParser()
  t.throws(() => parser.push('x'.repeat(maxEventBytes + 1)), RangeError)
})
