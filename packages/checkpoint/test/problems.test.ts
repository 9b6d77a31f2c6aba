import t from 'tap'
import { groupProblems, refusal } from '../src/problems.js'

t.test('one entry per reason, with the first names and the count', async (t) => {
  const files = Array.from({ length: 2000 }, (_, i) => ({ what: `file ${i}`, reason: 'it is deleted' }))
  const problems = [files[0], { what: 'fd 7', reason: 'it is a socket' }, ...files.slice(1)]
  t.same(groupProblems(problems), [
    { what: 'file 0, file 1, file 2 and 1997 more', reason: 'it is deleted', count: 2000 },
    { what: 'fd 7', reason: 'it is a socket', count: 1 },
  ])
})

t.test('bounded, whatever the workload has', async (t) => {
  const long = 'x'.repeat(5000)
  const problems = Array.from({ length: 3000 }, (_, i) => ({ what: long, reason: `${i} ${long}` }))
  const groups = groupProblems(problems)
  t.equal(groups.length, 50)
  t.match(groups[49], { what: '2951 more', count: 2951 })
  t.ok(JSON.stringify(groups).length < 32_000)
  const error = refusal('it cannot be moved', problems)
  t.equal(error.code, 'REFUSED')
  t.ok(error.message.length <= 2000)
  t.same(error.details.problems, groups)
})

t.test('no name reaches a terminal with control characters in it', async (t) => {
  const evil = { what: 'file \x1b[2J\x9bm\nüber', reason: 'process 7 (\x07x) has it' }
  t.same(groupProblems([evil]), [{ what: 'file ?[2J?m?über', reason: 'process 7 (?x) has it', count: 1 }])
  t.equal(
    refusal('process 1 (\x1b)', [evil]).message,
    'process 1 (?): file ?[2J?m?über: process 7 (?x) has it',
  )
})
