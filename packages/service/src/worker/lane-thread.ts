import { Worker, type WorkerOptions } from 'node:worker_threads'

/**
 * Room for young objects, in MiB. A thread of a lane keeps next to nothing, and each may have as much as the whole worker
 * by default: three times 16 MiB, and a worker has up to 16 of them.
 */
const maxYoungGenerationSizeMb = 6

/** A thread that carries a lane of this worker and does nothing else. An error in it is a defect: the whole worker starts anew. */
export function startLaneThread(program: URL, options: Pick<WorkerOptions, 'workerData'> = {}): Worker {
  const thread = new Worker(program, { ...options, resourceLimits: { maxYoungGenerationSizeMb } })
  thread.on('error', (error) => {
    throw error
  })
  return thread
}
