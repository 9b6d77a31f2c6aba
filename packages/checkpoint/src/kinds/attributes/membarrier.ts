import type { CallBatch } from '../../remote/call-batch.js'
import { errnoName } from '../../remote/errno.js'
import type { SkeletonProcess } from '../../remote/skeleton-process.js'
import type { Tell } from './entries.js'

/** Registrations of a process for membarrier(2): a set of the commands that made them (linux/membarrier.h). */

const getRegistrations = 1 << 9
const bits = Array.from({ length: 32 }, (_, bit) => bit)

/** @returns 0 also before Linux 6.3, where the kernel does not answer */
export function askMembarrier(batch: CallBatch): () => number {
  const result = batch.tryAdd('membarrier', getRegistrations, 0, 0)
  return () => Math.max(0, Number(result()))
}

export function restoreMembarrier(skeleton: SkeletonProcess, registrations: number, tell: Tell): void {
  for (const command of bits.map((bit) => (1 << bit) >>> 0)) {
    if ((registrations & command) === 0) continue
    skeleton.queue(skeleton.pid, 'membarrier', [command, 0, 0], {
      onError: (errno) =>
        tell({
          what: `membarrier registration ${command} of the process`,
          reason: `membarrier on the destination failed with ${errnoName(errno)}`,
        }),
    })
  }
}
