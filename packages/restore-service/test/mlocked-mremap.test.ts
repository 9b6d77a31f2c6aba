import t from 'tap'
import { newPagesFrom } from '../src/lazy/mlocked-mremap.js'

/* That it is really needed, and enough, is shown by the workload `enlarges`. */

const mremap = 25
const mayMove = 1n
const fixed = 2n
const [from, to, elsewhere] = [0x100, 0x800, 0x4000]
const bytes = (pages: number) => BigInt(pages) * 4096n

const call = (flags: bigint, nrOld = 8, nrNew = 12, nr = mremap) => ({
  nr,
  args: [bytes(from), bytes(nrOld), bytes(nrNew), flags, bytes(to), 0n],
})

t.test('only the first page of what is new', async (t) => {
  t.equal(newPagesFrom(to + 8, call(mayMove | fixed)), 4)
  t.equal(newPagesFrom(to + 7, call(mayMove | fixed)), 0, 'that one has moved')
  t.equal(newPagesFrom(elsewhere, call(mayMove | fixed)), 0)
  t.equal(newPagesFrom(elsewhere, call(mayMove)), 4, 'where the kernel has put it')
  t.equal(newPagesFrom(from, call(mayMove)), 0)
  t.equal(newPagesFrom(from + 7, call(mayMove)), 0)
})

t.test('lengths that are no multiples count as the pages that they begin', async (t) => {
  const [old, , , flags, new_] = call(mayMove | fixed).args
  const args = [old, bytes(8) - 5n, bytes(11) + 1n, flags, new_, 0n]
  t.equal(newPagesFrom(to + 8, { nr: mremap, args }), 4)
})

t.test('no such thing', async (t) => {
  t.equal(newPagesFrom(elsewhere, null), 0)
  t.equal(newPagesFrom(elsewhere, call(mayMove, 8, 8)), 0, 'moved, not enlarged')
  t.equal(newPagesFrom(elsewhere, call(mayMove, 8, 4)), 0)
  t.equal(newPagesFrom(elsewhere, call(mayMove, 0, 4)), 0, 'a second mapping of the same')
  t.equal(newPagesFrom(elsewhere, call(0n)), 0, 'where it stays nothing has to be said')
  t.equal(newPagesFrom(elsewhere, call(mayMove, 8, 12, 9)), 0, 'another system call')
})
