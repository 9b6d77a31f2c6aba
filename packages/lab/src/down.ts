import { setTimeout as sleep } from 'node:timers/promises'
import { destroyCgroups, findHierarchies, labCgroups } from './cgroups.js'
import { hostProcesses } from './host.js'
import { hostNames } from './paths.js'
import { isAlive, readState, releaseLab } from './state.js'

/** After SIGKILL to its pid 1 the kernel ends all processes of a pid namespace. */
const deathTimeoutMs = 10_000

/**
 * Takes a lab down, whatever state it is in: running, crashed while coming up, or already gone. Kills every process of
 * both hosts, frozen or not, removes their cgroups and the lab's directory. Idempotent.
 */
export async function takeDown(name: string): Promise<void> {
  const state = readState(name)
  const hierarchies = findHierarchies()
  // By name as well as from the state: the lab may have died between creating a cgroup and recording it.
  await destroyCgroups(hostNames.flatMap((host) => labCgroups(name, host, hierarchies)))
  const processes = hostNames.flatMap((host) => {
    const known = state?.hosts[host]
    return known === undefined ? [] : hostProcesses(known)
  })
  const deadline = Date.now() + deathTimeoutMs
  for (let left = processes.filter(isAlive); left.length > 0; left = processes.filter(isAlive)) {
    for (const { pid } of left) {
      try {
        process.kill(pid, 'SIGKILL')
      } catch {
        // already gone
      }
    }
    if (Date.now() > deadline)
      throw new Error(`lab "${name}": processes ${left.map((p) => p.pid)} do not die`)
    await sleep(5)
  }
  releaseLab(name)
}
