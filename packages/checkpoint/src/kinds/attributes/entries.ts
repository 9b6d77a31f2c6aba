import { isKernelError } from '@pageferry/base'
import type { AttributeEntry } from '@pageferry/images'
import { type Problem, printable } from '../../problems.js'
import type { CallBatch } from '../../remote/call-batch.js'
import { errnoName } from '../../remote/errno.js'
import type { SkeletonProcess } from '../../remote/skeleton-process.js'
import { type CallAttribute, callAttributes } from './by-call.js'
import { outsideAttributes } from './from-outside.js'

/** Dumps and restores attributes that travel as AttributeEntry of a thread or of a process. */

type Of = CallAttribute['of']

/** Reports a part that the workload has lost, and the reason. */
export type Tell = (lost: Problem) => void

export interface Owner {
  /** Tid as the tracer sees it; the leader's for attributes of the process. */
  tid: number
  /** For the user: "thread 7", "the process". */
  who: string
}

/** @returns the entries, once the batch has run in the thread, or in any thread of the process */
export function askAttributes(of: Of, batch: CallBatch): () => AttributeEntry[] {
  const asked = callAttributes
    .filter((attribute) => attribute.of === of)
    .map(({ name, ask }) => ({ name, answer: ask(batch) }))
  return () =>
    asked.flatMap(({ name, answer }) => {
      const value = answer()
      return value === null ? [] : [{ name, value }]
    })
}

/** @param tid of any thread, for attributes of the process */
export function dumpOutsideAttributes(of: Of, pid: number, tid: number): AttributeEntry[] {
  return outsideAttributes
    .filter((attribute) => attribute.of === of)
    .flatMap(({ name, dump }) => {
      const value = dump(pid, tid)
      return value === null ? [] : [{ name, value }]
    })
}

/**
 * Runs in the thread itself, while it has privileges and when all memory is mapped. An unknown entry comes from a newer
 * pageferry. It is reported, too.
 */
export function restoreAttributes(
  skeleton: SkeletonProcess,
  { tid, who }: Owner,
  entries: readonly AttributeEntry[],
  tell: Tell,
): void {
  for (const { name, value } of entries) {
    if (find(outsideAttributes, name) !== undefined) continue
    const what = `${name} of ${who}`
    const attribute = find(callAttributes, name)
    if (attribute === undefined) {
      tell({ what: printable(what.slice(0, 100)), reason: 'the destination knows no such attribute' })
      continue
    }
    const call = attribute.restore(value, (bytes) => skeleton.put(bytes))
    skeleton.queue(tid, call.name, call.args, {
      onError: (errno) =>
        tell({ what, reason: `${call.name} on the destination failed with ${errnoName(errno)}` }),
    })
  }
}

/** Comes last: an attribute that makes a thread slower would slow down the restore. */
export function restoreOutsideAttributes(
  pid: number,
  { tid, who }: Owner,
  entries: readonly AttributeEntry[],
  tell: Tell,
): void {
  for (const { name, value } of entries) {
    const attribute = find(outsideAttributes, name)
    if (attribute === undefined) continue
    const what = `${name} of ${who}`
    try {
      const reason = attribute.restore(pid, tid, value)
      if (reason !== null) tell({ what, reason })
    } catch (error) {
      if (!isKernelError(error)) throw error
      tell({ what, reason: `${error.syscall} on the destination failed with ${error.code}` })
    }
  }
}

function find<T extends { name: string }>(all: readonly T[], name: string): T | undefined {
  return all.find((attribute) => attribute.name === name)
}
