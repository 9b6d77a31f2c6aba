import { PageferryError } from '@pageferry/base'
import t from 'tap'
import { failureStatus } from '../src/errors.js'

t.test('3 for a refusal, 4 once the workload was touched', async (t) => {
  const notPermitted = new PageferryError('NOT_PERMITTED', 'mount failed with EPERM')
  t.equal(failureStatus(notPermitted, false), 3)
  t.equal(failureStatus(notPermitted, true), 4)
  t.equal(failureStatus(new PageferryError('TIMEOUT', 'too long'), false), 4)
  t.equal(failureStatus(new PageferryError('UNAUTHORIZED', 'a token'), false), 4, 'it had begun')
})
