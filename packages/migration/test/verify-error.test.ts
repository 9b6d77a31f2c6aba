import t from 'tap'
import { foundByPeer, maxNamedPages, verifyError } from '../src/index.js'

t.test('one sentence: how many, why, and which', async (t) => {
  const differing = [{ address: '0x7f0000001000', area: '[heap]' }]
  t.match(verifyError({ mismatches: 1, unproven: 0, differing }), {
    code: 'VERIFY_FAILED',
    message: '1 page of the restored process differs from the original: 0x7f0000001000 [heap]',
    details: { mismatches: 1, unproven: 0, differing },
  })
  t.equal(
    verifyError({ mismatches: 3, unproven: 2, differing }, 'the original died').message,
    '3 pages of the restored process differ from the original, 2 could not be compared (the original died): 0x7f0000001000 [heap], …',
  )
})

t.test('of what a peer says only numbers count', async (t) => {
  const lie = '0x1; rm -rf /'
  const details = {
    mismatches: 2,
    unproven: -1,
    differing: [{ address: lie }, { address: '0x1000', area: lie }, null],
  }
  t.same(foundByPeer(details), { mismatches: 2, unproven: 0, differing: [{ address: '0x1000', area: '' }] })
  t.same(foundByPeer({ mismatches: 'many', differing: 7 }), { mismatches: 0, unproven: 0, differing: [] })
  const many = Array.from({ length: 1000 }, () => ({ address: '0x1000' }))
  t.equal(foundByPeer({ differing: many }).differing.length, maxNamedPages)
})
