import { closeSync, openSync, readSync } from 'node:fs'

/** Bits 63 and 62 of an entry of /proc/PID/pagemap: present, swapped (Documentation/admin-guide/mm/pagemap.rst). */
const presentOrSwapped = 3n << 62n

export function isPagePresent(pid: number, page: number): boolean {
  const entry = new BigUint64Array(1)
  const fd = openSync(`/proc/${pid}/pagemap`, 'r')
  try {
    readSync(fd, new Uint8Array(entry.buffer), 0, 8, page * 8)
  } finally {
    closeSync(fd)
  }
  return (entry[0] & presentOrSwapped) !== 0n
}
