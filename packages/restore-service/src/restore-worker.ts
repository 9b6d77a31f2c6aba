import { rehearse, requireCapabilities } from '@pageferry/checkpoint'
import type { RestoreRequest } from '@pageferry/service'
import { runWorker } from '@pageferry/service/worker'
import { DestinationWorker } from './worker.js'

runWorker<RestoreRequest>({
  async rehearse(directory, signal) {
    requireCapabilities('destination')
    await rehearse(directory, 'restore', { signal })
  },
  main(spec, takeover, channel) {
    new DestinationWorker(spec, takeover, channel)
  },
})
