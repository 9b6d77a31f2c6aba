import t from 'tap'
import { checkListenAddress, isLoopback, parseListenAddress, serviceUrl } from '../src/server/listen.js'

t.test('loopback and lab addresses are accepted, nothing else', async (t) => {
  for (const host of ['127.0.0.1', '127.8.9.10', '::1', '10.77.0.1', '10.77.255.254']) {
    t.equal(checkListenAddress(host), host)
  }
  t.equal(checkListenAddress('localhost'), '127.0.0.1', 'not left to the resolver')
  const refused = ['0.0.0.0', '::', '10.78.0.1', '10.76.255.255', '192.168.1.1', '::2', 'example.org', '']
  for (const host of [...refused, '::ffff:0.0.0.0', '127.0.0.1.evil.org', '0x7f.1']) {
    t.throws(() => checkListenAddress(host), {
      code: 'BAD_REQUEST',
      message: /no TLS.*--insecure-listen-anywhere/,
    })
    t.equal(checkListenAddress(host, true), host, 'unless the user insists')
  }
})

t.test('isLoopback', async (t) => {
  t.ok(isLoopback('127.1.2.3'))
  t.ok(isLoopback('::1'))
  t.notOk(isLoopback('10.77.0.1'))
  t.notOk(isLoopback('localhost'), 'a name is not an address')
})

t.test('HOST:PORT', async (t) => {
  const defaults = { host: '127.0.0.1', port: 7421 }
  const parse = (text: string) => parseListenAddress(text, defaults)
  t.same(parse('10.77.0.2:80'), { host: '10.77.0.2', port: 80 })
  t.same(parse('10.77.0.2'), { host: '10.77.0.2', port: 7421 })
  t.same(parse(':0'), { host: '127.0.0.1', port: 0 })
  t.same(parse('[::1]:5'), { host: '::1', port: 5 })
  t.same(parse('[::1]'), { host: '::1', port: 7421 })
  for (const text of ['', '::1', 'a:b', '1.2.3.4:65536', '1.2.3.4:', '[::1', 'a:1:2']) {
    t.throws(() => parse(text), { code: 'BAD_REQUEST' }, text)
  }
  t.equal(serviceUrl('::1', 5), 'http://[::1]:5')
  t.equal(serviceUrl('127.0.0.1', 5), 'http://127.0.0.1:5')
})
