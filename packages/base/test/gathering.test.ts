import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { Gathering } from '../src/index.js'

t.test('what is gathered is told once, together and in order', async (t) => {
  const told: number[][] = []
  const gathering = new Gathering<number>(5, (items) => told.push(items))
  gathering.add(1)
  gathering.add(2)
  t.same(told, [])
  while (told.length === 0) await sleep(1)
  gathering.add(3)
  while (told.length === 1) await sleep(1)
  t.same(told, [[1, 2], [3]])
})

t.test('what is taken is not told', async (t) => {
  const told: number[][] = []
  const gathering = new Gathering<number>(1, (items) => told.push(items))
  t.same(gathering.take(), [])
  gathering.add(1)
  gathering.add(2)
  t.same(gathering.take(), [1, 2])
  await sleep(20)
  gathering.add(3)
  while (told.length === 0) await sleep(1)
  t.same(told, [[3]])
})
