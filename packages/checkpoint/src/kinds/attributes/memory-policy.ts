import { readFileSync } from 'node:fs'
import { addressOf, PageferryError } from '@pageferry/base'
import type { MemoryPolicyEntry } from '@pageferry/images'
import { type AreaMap, carriesPages } from '@pageferry/pages'
import type { CaptureContext } from '../../capture-context.js'
import { CallBatch } from '../../remote/call-batch.js'
import { errnoName } from '../../remote/errno.js'
import type { SkeletonProcess } from '../../remote/skeleton-process.js'
import type { CallAttribute } from './by-call.js'
import type { Tell } from './entries.js'

/**
 * NUMA policies of threads and areas (set_mempolicy(2), mbind(2)). A policy is its mode with flags, 8 bytes, and a set of
 * nodes. A node that the destination does not have is reported.
 */

/** 1024 nodes, the most that MAX_NUMNODES can be. */
const nodeBytes = 128
/** The kernel takes one off (set_mempolicy(2), "Notes"). */
const maxNode = nodeBytes * 8 + 1
const modeBytes = 8
const policyBytes = modeBytes + nodeBytes
const mpolDefault = 0
const mpolFAddr = 2

/** @returns null: the default, or a kernel without NUMA */
function ask(batch: CallBatch, address: bigint, flags: number): () => Uint8Array | null {
  const mode = batch.room(modeBytes)
  const nodes = batch.room(nodeBytes)
  const result = batch.tryAdd('get_mempolicy', mode, nodes, maxNode, address, flags)
  return () => {
    if (result() < 0n) return null
    const policy = Buffer.alloc(policyBytes)
    policy.writeUInt32LE(batch.read(mode, modeBytes).readUInt32LE(0), 0)
    if (policy.readUInt32LE(0) === mpolDefault) return null
    batch.read(nodes, nodeBytes).copy(policy, modeBytes)
    return policy
  }
}

/** Mode and nodes, as system calls take them. */
function split(policy: Uint8Array): { mode: number; nodes: Uint8Array } {
  if (policy.length !== policyBytes)
    throw new PageferryError('PROTOCOL', `a memory policy has ${policyBytes} bytes`)
  return { mode: Buffer.from(policy).readUInt32LE(0), nodes: policy.subarray(modeBytes) }
}

/** Of a thread. */
export const memoryPolicy: CallAttribute = {
  name: 'memory-policy',
  of: 'thread',
  ask: (batch) => ask(batch, 0n, 0),
  restore(value, put) {
    const { mode, nodes } = split(value)
    return { name: 'set_mempolicy', args: [mode, put(nodes), maxNode] }
  },
}

/** Each question takes two places in the memory of a batch. */
const areasPerBatch = 200

/**
 * Policies of areas. Each area costs the freeze about a microsecond. So this runs only for a process that has used policies
 * (`usesMemoryPolicies`).
 */
export function dumpAreaPolicies({ process, status }: CaptureContext, map: AreaMap): MemoryPolicyEntry[] {
  const areas = map.areas.filter((area) => carriesPages(area) || area.kind === 'file-shared')
  const entries: MemoryPolicyEntry[] = []
  for (let first = 0; first < areas.length; first += areasPerBatch) {
    const batch = new CallBatch(process, process.leader, status)
    const asked = areas.slice(first, first + areasPerBatch).map(({ start, nrPages }) => ({
      start: addressOf(start),
      end: addressOf(start + nrPages),
      policy: ask(batch, addressOf(start), mpolFAddr),
    }))
    batch.run()
    for (const { start, end, policy } of asked) {
      const found = policy()
      if (found !== null) entries.push({ start, end, policy: found })
    }
  }
  return entries
}

/** Whether an area, or the main thread, has a policy. Walks all page tables, so not in the freeze. */
export function usesMemoryPolicies(pid: number): boolean {
  try {
    return /^[0-9a-f]+ (?!default )/m.test(readFileSync(`/proc/${pid}/numa_maps`, 'latin1'))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    return false
  }
}

/** Pages that are there already stay on the node of the worker that has received them. */
export function restoreAreaPolicies(
  skeleton: SkeletonProcess,
  entries: readonly MemoryPolicyEntry[],
  tell: Tell,
): void {
  for (const { start, end, policy } of entries) {
    const { mode, nodes } = split(policy)
    const args = [start, end - start, mode, skeleton.put(nodes), maxNode, 0]
    skeleton.queue(skeleton.pid, 'mbind', args, {
      onError: (errno) =>
        tell({
          what: `area-policy of memory at ${start.toString(16)}`,
          reason: `mbind on the destination failed with ${errnoName(errno)}`,
        }),
    })
  }
}
