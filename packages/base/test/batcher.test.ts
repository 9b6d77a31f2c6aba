import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { Batcher } from '../src/index.js'

t.test('what is gathered is told once, together and in order', async (t) => {
  const told: number[][] = []
  const batcher = new Batcher<number>(5, (items) => told.push(items))
  batcher.add(1)
  batcher.add(2)
  t.same(told, [])
  while (told.length === 0) await sleep(1)
  batcher.add(3)
  while (told.length === 1) await sleep(1)
  t.same(told, [[1, 2], [3]])
})

t.test('what is taken is not told', async (t) => {
  const told: number[][] = []
  const batcher = new Batcher<number>(1, (items) => told.push(items))
  t.same(batcher.take(), [])
  batcher.add(1)
  batcher.add(2)
  t.same(batcher.take(), [1, 2])
  await sleep(20)
  batcher.add(3)
  while (told.length === 0) await sleep(1)
  t.same(told, [[3]])
})
