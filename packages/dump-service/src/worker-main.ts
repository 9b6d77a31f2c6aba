import type { DumpRequest } from '@pageferry/service'
import { runWorker } from '@pageferry/service/worker'
import { SourceWorker } from './worker.js'

runWorker<DumpRequest>((spec, takeover, channel) => {
  new SourceWorker(spec, takeover, channel)
})
