import type { RestoreRequest } from '@pageferry/service'
import { runWorker } from '@pageferry/service/worker'
import { DestinationWorker } from './worker.js'

runWorker<RestoreRequest>((spec, takeover, channel) => {
  new DestinationWorker(spec, takeover, channel)
})
