import { Worker, type WorkerOptions } from 'node:worker_threads'

/**
 * Room for young objects, in MiB. A thread of a lane keeps next to nothing. By default each of up to 16 threads would
 * have as much room as the whole worker: three times 16 MiB.
 */
const maxYoungGenerationSizeMb = 6

/**
 * Starts a thread that carries lanes of this worker and does nothing else. An error in it is a defect: it ends the
 * worker, and the next one takes over.
 */
export function startLaneThread(program: URL, options: Pick<WorkerOptions, 'workerData'> = {}): Worker {
  const thread = new Worker(program, { ...options, resourceLimits: { maxYoungGenerationSizeMb } })
  thread.on('error', (error) => {
    throw error
  })
  return thread
}
