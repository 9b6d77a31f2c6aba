import { rehearse, requireCapabilities } from '@pageferry/checkpoint'
import type { DumpRequest } from '@pageferry/service'
import { runWorker } from '@pageferry/service/worker'
import { SourceWorker } from './worker.js'

runWorker<DumpRequest>({
  async rehearse(directory, signal) {
    requireCapabilities('source')
    await rehearse(directory, 'capture', { signal })
  },
  main(spec, takeover, channel) {
    new SourceWorker(spec, takeover, channel)
  },
})
