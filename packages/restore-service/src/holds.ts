import { cgroupHold } from '@pageferry/checkpoint'
import { connectKeeper, type KeeperClient } from '@pageferry/kernel'
import { type Hold, Holds } from '@pageferry/service/worker'

/** The keeper, and its child: the skeleton or the process that it has become. */
export const keeperHold: Hold<{ directory: string }, string> = {
  name: 'keeper',
  release: endKeeper,
  recover: ({ directory }) => endKeeper(directory),
}

/**
 * Everything that the destination does to its host, in the order of taking. The keeper is undone first, because only an
 * empty cgroup can be removed. Once the workload runs there is nothing to undo: the keeper removes the cgroup at the
 * end.
 */
export function openHolds(stateDir: string): Holds {
  return new Holds(`${stateDir}/holds`, [cgroupHold, keeperHold])
}

/** Opens its own connection: a launch that failed half-way has a keeper and no client. */
function endKeeper(directory: string): void {
  let keeper: KeeperClient | null = null
  try {
    keeper = connectKeeper(directory)
    if (keeper.status().state === 'none') keeper.quit()
    else keeper.kill()
  } catch {
    // The keeper has ended, before the call or during it.
  } finally {
    keeper?.close()
  }
}
