import { setTimeout as sleep } from 'node:timers/promises'
import { PageferryError } from '@pageferry/base'
import t from 'tap'
import {
  type DestinationEffect,
  type DestinationEvent,
  type DestinationState,
  Driver,
  type SourceEffect,
  type SourceEvent,
  type SourceState,
  startDestination,
  startSource,
  stepDestination,
  stepSource,
} from '../src/index.js'
import { toDestination, toSource } from './frames.js'

type Done = Promise<void> | void

function sourceDriver(execute: (effect: SourceEffect, signal: AbortSignal) => Done, log: string[] = []) {
  return new Driver<SourceState, SourceEvent, SourceEffect>(startSource('hybrid'), {
    step: stepSource,
    onState: (state) => log.push(state.name),
    execute: (effect, signal) => {
      log.push(effect.type === 'send' ? `send ${effect.message.type}` : effect.type)
      return execute(effect, signal)
    },
  })
}

async function quiet(driver: { idle: Promise<void> }): Promise<void> {
  for (let i = 0; i < 20; i++) {
    await driver.idle
    await sleep(1)
  }
}

t.test('effects run in order, each to its end, and steps report back', async (t) => {
  const log: string[] = []
  const driver = sourceDriver(async (effect) => {
    if (effect.type === 'journal') {
      await sleep(5)
      log.push('durable')
    }
    if (effect.type === 'startServing') await new Promise(() => undefined)
  }, log)
  driver.post({ type: 'connected' })
  await quiet(driver)
  driver.post(toSource('prepared'))
  await quiet(driver)
  driver.post(toSource('ready'))
  driver.post(toSource('running'))
  await quiet(driver)
  t.equal(driver.state.name, 'serving')
  const from = log.indexOf('committed')
  t.strictSame(log.slice(from), ['committed', 'journal', 'durable', 'send commit', 'startServing', 'serving'])
})

t.test('a failed effect drops the rest and is the next event', async (t) => {
  for (const [written, end] of [
    ['no', 'resumed'],
    ['unknown', 'committed'],
  ] as const) {
    const log: string[] = []
    const driver = sourceDriver((effect) => {
      if (effect.type === 'journal') throw new PageferryError('KERNEL', 'disk full', { details: { written } })
    }, log)
    driver.post({ type: 'connected' })
    await quiet(driver)
    driver.post(toSource('prepared'))
    await quiet(driver)
    driver.post(toSource('ready'))
    driver.post({ type: 'cancel' })
    await quiet(driver)
    t.notOk(log.includes('send commit'), 'Commit stands behind the record')
    t.equal(driver.state.name, end)
    t.equal(log.includes('restart'), written === 'unknown')
    t.equal(log.includes('resumeWorkload'), written === 'no')
  }
})

t.test('resuming stops the running step first and does not report it', async (t) => {
  const log: string[] = []
  const driver = sourceDriver(async (effect, signal) => {
    if (effect.type !== 'startPrecopy') return
    await new Promise((resolve) => signal.addEventListener('abort', resolve))
    await sleep(5)
    log.push('precopy ended')
    throw new Error('interrupted')
  }, log)
  driver.post({ type: 'connected' })
  await quiet(driver)
  driver.post(toSource('prepared'))
  await quiet(driver)
  driver.post({ type: 'cancel' })
  await quiet(driver)
  t.strictSame(log.slice(-5), ['resumed', 'precopy ended', 'resumeWorkload', 'send cancel', 'finish'])
})

t.test('nothing is executed after stop, and a failed thaw carries what is known', async (t) => {
  const log: string[] = []
  const driver = new Driver<DestinationState, DestinationEvent, DestinationEffect>(startDestination(), {
    step: stepDestination,
    execute: (effect) => {
      log.push(effect.type)
      if (effect.type === 'thawSkeleton') {
        throw new PageferryError('KERNEL', 'it is dead', { details: { neverRan: true } })
      }
    },
  })
  const send = async (type: 'begin' | 'dumpEnd' | 'commit') => {
    driver.post(toDestination(type))
    await quiet(driver)
  }
  await send('begin')
  await send('dumpEnd')
  t.equal(driver.state.name, 'ready')
  await send('commit')
  t.equal(driver.state.name, 'abandoned')
  driver.stop()
  const before = log.length
  await send('commit')
  t.equal(log.length, before)
})
