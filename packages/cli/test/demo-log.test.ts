import t from 'tap'
import { checkLog } from '../src/ui/demo-log.js'

function log(...rows: [number, number, string, number][]): string {
  return rows.map((row) => `${row.join(' ')} 00\n`).join('')
}

t.test('a log as if the program had never moved', async (t) => {
  const found = checkLog(log([1, 7, 'a', 5.0], [2, 7, 'a', 5.1], [3, 7, 'b', 5.25], [4, 7, 'b', 5.35]), 7)
  t.same(found.problems, [])
  t.same(found.hosts, [
    { host: 'a', lines: 2 },
    { host: 'b', lines: 2 },
  ])
  t.equal(found.lines, 4)
  t.equal(found.longestPauseMs, 150)
  t.equal(found.usualPauseMs, 100)
})

t.test('what a bad move would show', async (t) => {
  t.match(checkLog(log([1, 7, 'a', 1], [3, 7, 'b', 2]), 7).problems, ['line 2 has the counter 3'])
  t.match(checkLog(log([1, 7, 'a', 1], [2, 8, 'b', 2]), 7).problems, ['line 2 was written by process 8'])
  t.match(checkLog(log([1, 7, 'a', 1], [2, 7, 'b', 1000000]), 7).problems, [
    /its clock went from 1 to 1000000/,
  ])
  t.match(checkLog(log([1, 7, 'a', 2], [2, 7, 'b', 1]), 7).problems, [/its clock went from 2 to 1/])
  t.match(
    checkLog(log([1, 7, 'a', 1], [2, 7, 'b', 2], [3, 7, 'a', 3]), 7).problems,
    [/on 3 hosts/],
    'two copies',
  )
  t.match(checkLog(log([1, 7, 'a', 1]), 7).problems, [/on 1 hosts/])
})
