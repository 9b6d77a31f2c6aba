import t from 'tap'
import { newId, newToken, tokensEqual } from '../src/token.js'

t.test('ids and tokens', async (t) => {
  t.match(newId(), /^[0-9a-f]{16}$/)
  t.match(newToken(), /^[A-Za-z0-9_-]{43}$/)
  t.not(newToken(), newToken())
  const token = newToken()
  t.ok(tokensEqual(token, String(token)))
  t.notOk(tokensEqual(token, newToken()))
  t.notOk(tokensEqual(token, token.slice(1)), 'another length is no error')
  t.notOk(tokensEqual('', token))
})
