import { writeSync } from 'node:fs'
import { PageferryError } from '@pageferry/base'
import { type EventfdFileEntry, FdType } from '@pageferry/images'
import { fds } from '@pageferry/kernel'
import { type FdInfo, fdinfoLines } from '../../proc/fdinfo.js'
import type { FdKind } from './kind.js'
import { dumpSignal } from './signal-owner.js'

/** Event counters (eventfd(2)). The kernel shows all of their state, so none has to be read out of them. */

const { O_CLOEXEC, O_NONBLOCK } = fds
/** Stored in the message beside the open flags. A reader passes them to F_SETFL, which ignores this bit. */
const EFD_SEMAPHORE = 1
/** Only the kernel itself (AIO, KVM) can raise a counter that far; write(2) refuses. */
const overflown = 0xffff_ffff_ffff_ffffn

/** Unlike decimal fields this one has no prefix: "eventfd-count:               1f". */
function counterOf(info: FdInfo): bigint {
  return BigInt(`0x${fdinfoLines(info, 'eventfd-count')[0] ?? '0'}`)
}

export const eventfd: FdKind<'efd'> = {
  name: 'eventfd',
  type: FdType.EVENTFD,
  field: 'efd',

  matches: ({ target }) => target === 'anon_inode:[eventfd]',

  outside(info) {
    // Linux 5.2 began to show it.
    const [id] = fdinfoLines(info, 'eventfd-id')
    return { object: id && `eventfd ${id}` }
  },

  check({ info }) {
    if (fdinfoLines(info, 'eventfd-semaphore').length === 0)
      return 'this kernel does not say whether an eventfd is a semaphore (Linux 6.5 does)'
    return counterOf(info) === overflown ? 'the counter of the eventfd has overflowed' : null
  },

  dump({ info, copy }, id): EventfdFileEntry {
    const semaphore = fdinfoLines(info, 'eventfd-semaphore')[0] === '1' ? EFD_SEMAPHORE : 0
    return {
      id,
      flags: (info.flags & ~O_CLOEXEC) | semaphore,
      fown: dumpSignal(info, copy),
      counter: counterOf(info),
    }
  },

  create({ flags, counter }) {
    if (counter === overflown) throw new PageferryError('PROTOCOL', 'an eventfd has an impossible counter')
    const fd = fds.eventfd(flags & (EFD_SEMAPHORE | O_NONBLOCK))
    // eventfd(2) takes only 32 bits of the value. A write to a counter of 0 does not block.
    if (counter > 0n) writeSync(fd, new Uint8Array(BigUint64Array.of(counter).buffer))
    return fd
  },
}
