import { PassThrough } from 'node:stream'
import type { Status } from '@pageferry/service/client'
import t from 'tap'
import { Progress } from '../src/ui/progress.js'

const base = { id: '0123456789abcdef', workload: null, createdAt: '2026-01-01T00:00:00.000Z' }

function source(state: string, progress?: Status['progress']): Status {
  return { ...base, role: 'source', state, progress }
}

function destination(state: string, progress?: Status['progress']): Status {
  return { ...base, role: 'destination', state, progress }
}

t.test('without a terminal: a line when something ends', async (t) => {
  const out = new PassThrough({ encoding: 'utf8' })
  const progress = new Progress(out)
  progress.update(source('preparing'))
  progress.update(source('precopy', { phase: 'round', round: 1, pages: 0, totalPages: 1000 }))
  progress.update(source('precopy', { phase: 'round', round: 1, pages: 600, totalPages: 1024 }))
  progress.update(source('precopy', { phase: 'round', round: 2, pages: 10, totalPages: 256 }))
  progress.update(source('freezing', { phase: 'round', round: 2, pages: 256, totalPages: 256 }))
  progress.update(source('freezing', { phase: 'freeze' }))
  progress.update(destination('running', { phase: 'lazy', pages: 0, totalPages: 512, pendingPages: 512 }))
  progress.update(destination('running', { phase: 'lazy', pages: 512, totalPages: 512, pendingPages: 0 }))
  progress.update(destination('drained'))
  progress.stop()
  progress.line('end')
  t.equal(
    out.read(),
    [
      'inspecting the process',
      'round 1: 1,024 pages, 4.0 MiB',
      'round 2: 256 pages, 1.0 MiB',
      'freezing',
      'running on the destination',
      'lazy phase: 512 pages, 2.0 MiB',
      'all pages are there',
      'end',
      '',
    ].join('\n'),
  )
})
