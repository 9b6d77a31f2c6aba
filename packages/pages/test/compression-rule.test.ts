import { pageBytes } from '@pageferry/base'
import t from 'tap'
import { CompressionRule, samplePages } from '../src/compression-rule.js'
import { FlightWindow } from '../src/flight-window.js'

const batchBytes = 256 * pageBytes
const windowBytes = 4 * batchBytes
/** What reading and sending a batch takes, in bytes per millisecond: 4 GB/s. */
const plainSpeed = 4_000_000

const rate = (bytesPerMs: number) => ({ bytesPerMs, pagesPerMs: bytesPerMs / pageBytes })

/** Speeds in bytes per millisecond. */
interface Path {
  link: number
  /** Of what the destination installs. Default: no limit. */
  install?: number
  rttMs: number
  /** Of the compressor. */
  speed: number
  ratio: number
}

/**
 * A sender with a window in front of a link, one batch of pages after the other. It goes by the rule, or does always
 * the same.
 */
class Sender {
  readonly window = new FlightWindow(windowBytes)
  nowMs = 0
  /** Batches that were sent compressed, samples that were taken, and when the decision was another than before. */
  compressed = 0
  samples = 0
  changes = 0
  #linkFreeMs = 0
  #installedMs = 0
  #id = 0
  #inFlightBytes = 0
  #acks: { id: number; atMs: number }[] = []
  #wasOn = false
  readonly #rule: CompressionRule | 'always' | 'never'

  constructor(rule: CompressionRule | 'always' | 'never') {
    this.#rule = rule
  }

  #takeAcks(): void {
    while (this.#acks.length > 0 && this.#acks[0].atMs <= this.nowMs) {
      this.window.acknowledged((this.#acks.shift() as { id: number }).id, this.nowMs)
      this.#inFlightBytes -= batchBytes
    }
  }

  /** Until so many batches are sent; the time that it took. */
  send(nrBatches: number, { link, install = Number.POSITIVE_INFINITY, rttMs, speed, ratio }: Path): number {
    const began = this.nowMs
    for (let i = 0; i < nrBatches; i++) {
      this.#takeAcks()
      let heldBack = false
      while (this.#inFlightBytes + batchBytes > windowBytes) {
        heldBack = true
        this.nowMs = this.#acks[0].atMs
        this.#takeAcks()
      }
      const bytes = this.#batch(heldBack, speed, ratio)
      this.nowMs += batchBytes / plainSpeed
      this.window.sent(++this.#id, bytes, this.nowMs, batchBytes / pageBytes)
      this.#inFlightBytes += batchBytes
      this.#linkFreeMs = Math.max(this.nowMs + rttMs / 2, this.#linkFreeMs) + bytes / link
      this.#installedMs = Math.max(this.#linkFreeMs, this.#installedMs) + batchBytes / install
      this.#acks.push({ id: this.#id, atMs: this.#installedMs + rttMs / 2 })
    }
    return this.nowMs - began
  }

  #batch(heldBack: boolean, speed: number, ratio: number): number {
    const rule = this.#rule
    const decision =
      rule === 'never'
        ? 'plain'
        : rule === 'always'
          ? 'compress'
          : rule.next(this.nowMs, heldBack, this.window.rate)
    if (decision === 'plain') return batchBytes
    const from = decision === 'sample' ? samplePages * pageBytes : batchBytes
    this.nowMs += from / speed
    if (rule instanceof CompressionRule) {
      rule.measured(from, from * ratio, from / speed, this.nowMs)
      if (rule.isOn !== this.#wasOn) this.changes++
      this.#wasOn = rule.isOn
    }
    if (decision === 'sample') {
      this.samples++
      return batchBytes
    }
    this.compressed++
    return batchBytes * ratio
  }
}

/** GB/s that is one MB/ms: 10 Gbit/s are 1,250,000 bytes per millisecond. */
const paths: Record<string, Path> = {
  '100 Mbit/s, 10 ms': { link: 12_500, rttMs: 10, speed: 400_000, ratio: 0.3 },
  '100 Mbit/s, 0.2 ms': { link: 12_500, rttMs: 0.2, speed: 400_000, ratio: 0.3 },
  '100 Mbit/s, hardly compressible': { link: 12_500, rttMs: 1, speed: 400_000, ratio: 0.7 },
  '1 Gbit/s, 0.2 ms': { link: 125_000, rttMs: 0.2, speed: 400_000, ratio: 0.3 },
  '10 Gbit/s, 0.1 ms': { link: 1_250_000, rttMs: 0.1, speed: 400_000, ratio: 0.3 },
  '10 Gbit/s, 0.1 ms, almost only zeros': { link: 1_250_000, rttMs: 0.1, speed: 1_000_000, ratio: 0.01 },
  'loopback, 3 GB/s': { link: 3_000_000, rttMs: 0.05, speed: 400_000, ratio: 0.3 },
  '100 Mbit/s, incompressible': { link: 12_500, rttMs: 10, speed: 1_500_000, ratio: 1 },
}

t.test('whatever the path, about as fast as the better of always and never', async (t) => {
  for (const [name, path] of Object.entries(paths)) {
    const nrBatches = 1024
    const auto = new Sender(new CompressionRule({ windowBytes }))
    const autoMs = auto.send(nrBatches, path)
    const alwaysMs = new Sender('always').send(nrBatches, path)
    const neverMs = new Sender('never').send(nrBatches, path)
    // Where all parts are about as fast as each other, asking again whether that is so costs something.
    t.ok(autoMs < 1.2 * Math.min(alwaysMs, neverMs), `${name}: ${autoMs} of ${alwaysMs} and ${neverMs}`)
    const gain = neverMs / alwaysMs
    if (gain > 1.3) t.ok(auto.compressed > 0.9 * nrBatches, `${name}: on for ${auto.compressed} batches`)
    if (gain < 1) t.equal(auto.compressed, 0, `${name}: never on`)
    t.ok(auto.changes < 20, `${name}: ${auto.changes} changes`)
  }
})

t.test('a sender that the link does not hold back measures nothing', async (t) => {
  // It reads more slowly than the link takes it: everything is acknowledged before there is more.
  const sender = new Sender(new CompressionRule({ windowBytes }))
  sender.send(4096, { link: 8_000_000, rttMs: 0.05, speed: 400_000, ratio: 0.3 })
  t.equal(sender.samples, 0)
})

t.test('a sample every quarter of a second is all that it costs to be held back in vain', async (t) => {
  const sender = new Sender(new CompressionRule({ windowBytes }))
  const ms = sender.send(4096, paths['10 Gbit/s, 0.1 ms'])
  t.ok(sender.samples > 2 && sender.samples <= 1 + ms / 250, `${sender.samples} in ${ms} ms`)
  t.equal(sender.compressed, 0)
})

t.test('what the memory holds, and how fast the link is, may change on the way', async (t) => {
  const slow = paths['100 Mbit/s, 10 ms']
  const rule = new CompressionRule({ windowBytes })
  const sender = new Sender(rule)
  sender.send(200, slow)
  t.ok(rule.isOn)
  sender.send(40, { ...slow, speed: 1_500_000, ratio: 1 })
  t.notOk(rule.isOn, 'incompressible: off')
  sender.send(40, slow)
  t.ok(rule.isOn, 'compressible again: on')
  sender.send(300, paths['loopback, 3 GB/s'])
  t.notOk(
    rule.isOn,
    'a fast link: off, although its speed cannot be seen while the compressor is the slowest part',
  )
  sender.send(100, slow)
  t.ok(rule.isOn, 'slow again: on')
})

t.test('no compression helps against a destination that installs no faster', async (t) => {
  const path = { link: 3_000_000, install: 280_000, rttMs: 0.05, speed: 400_000, ratio: 0.3 }
  const rule = new CompressionRule({ windowBytes })
  const auto = new Sender(rule)
  const ms = auto.send(16_384, path)
  t.notOk(rule.isOn)
  // Attempts after 1, 2, 4, ... seconds.
  const attempts = Math.ceil(Math.log2(ms / 1000)) + 1
  t.ok(auto.compressed > 0 && auto.compressed <= attempts * 32, `${auto.compressed} in ${ms} ms`)
  auto.send(1024, paths['100 Mbit/s, 10 ms'])
  t.ok(rule.isOn, 'when the link becomes the slowest part, it is')
})

t.test('the limit of the user is a slow link too', async (t) => {
  const rule = new CompressionRule({ windowBytes, maxBytesPerMs: 6250 })
  for (let i = 0; i < 4; i++) rule.next(i, true, rate(3_000_000))
  t.equal(rule.next(4, true, rate(3_000_000)), 'sample')
  rule.measured(2 ** 18, 2 ** 16, 0.6, 5)
  t.equal(rule.next(6, true, rate(3_000_000)), 'compress')
})

t.test('lanes that share a thread share its speed', async (t) => {
  for (const [nrSharing, expected] of [
    [1, 'compress'],
    [4, 'plain'],
  ] as const) {
    const rule = new CompressionRule({ windowBytes, nrSharing })
    for (let i = 0; i < 4; i++) rule.next(i, true, rate(125_000))
    rule.measured(400_000, 100_000, 1, 4)
    t.equal(rule.next(5, true, rate(125_000)), expected)
  }
})

t.test('short rounds on a slow link, one batch each, say nothing against it', async (t) => {
  const rule = new CompressionRule({ windowBytes })
  const sender = new Sender(rule)
  sender.send(60, paths['100 Mbit/s, 10 ms'])
  t.ok(rule.isOn)
  for (let round = 0; round < 200; round++) {
    sender.send(1, paths['100 Mbit/s, 10 ms'])
    sender.nowMs += 100
  }
  t.ok(rule.isOn)
})

t.test('while the speed of the link is not known, nothing is tried', async (t) => {
  const rule = new CompressionRule({ windowBytes })
  for (let i = 0; i < 100; i++) t.equal(rule.next(i, true, null), 'plain')
})
