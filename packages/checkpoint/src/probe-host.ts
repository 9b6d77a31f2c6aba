import { closeSync, existsSync } from 'node:fs'
import { release } from 'node:os'
import { fds, paths, processes, uffd } from '@pageferry/kernel'
import { missingCapabilities } from './capabilities.js'
import { Freezer } from './freezer.js'
import { availableTrackers } from './trackers/open.js'

export interface HostFeature {
  name: string
  present: boolean
  /** What a host without the feature cannot do, or does worse. */
  cost: string
}

export interface HostProbe {
  kernelRelease: string
  features: HostFeature[]
}

/** Tries the features that a migration needs, on throw-away descriptors; changes nothing. */
export function probeHost(): HostProbe {
  const trackers = availableTrackers()
  const root = process.getuid?.() === 0
  const features: HostFeature[] = [
    feature('root', root, 'nothing can be moved from or to this host'),
    feature('x86_64', process.arch === 'x64', 'this version moves x86_64 processes only'),
    feature(
      'write-protect tracking (WP_ASYNC, PAGEMAP_SCAN; Linux 6.7)',
      trackers.includes('wp-async'),
      'soft-dirty bits or page hashes instead: rounds stop the workload shortly, or read all of its memory',
    ),
    feature(
      'soft-dirty tracking',
      trackers.includes('soft-dirty'),
      'matters only without write-protect tracking',
    ),
    ...uffdFeatures(),
    feature(
      'cgroup freezer',
      works(() => Freezer.atTop('probe')),
      'nothing can be moved from or to this host',
    ),
    feature('pidfd_getfd (Linux 5.6)', works(probePidfd), 'descriptors cannot be captured'),
    feature(
      'time namespaces (Linux 5.6)',
      existsSync('/proc/self/ns/time'),
      'CLOCK_MONOTONIC jumps to that of the new host',
    ),
    feature(
      'checkpoint/restore calls',
      existsSync('/proc/self/map_files'),
      'executable links and pids cannot be restored',
    ),
    feature(
      'skeleton and keeper programs',
      works(() => paths.skeleton) && works(() => paths.keeper),
      'run "npm run setup"',
    ),
    feature('extended registers (XSAVE)', processes.cpuXfeatures().xcr0 !== 0n, 'registers cannot be moved'),
    feature(
      'capabilities',
      missingCapabilities('destination').length === 0,
      `nothing can be moved from or to this host; missing: ${missingCapabilities('destination').join(', ')}`,
    ),
  ]
  return { kernelRelease: release(), features }
}

function feature(name: string, present: boolean, cost: string): HostFeature {
  return { name, present, cost }
}

function works(probe: () => unknown): boolean {
  try {
    probe()
    return true
  } catch {
    return false
  }
}

function probePidfd(): void {
  const pidfd = fds.pidfdOpen(process.pid)
  try {
    closeSync(fds.pidfdGetfd(pidfd, 2))
  } finally {
    closeSync(pidfd)
  }
}

function uffdFeatures(): HostFeature[] {
  const has = (bits: bigint): boolean =>
    works(() => {
      const fd = uffd.create(0)
      try {
        uffd.api(fd, bits)
      } finally {
        closeSync(fd)
      }
    })
  return [
    feature('userfaultfd', has(0n), 'no post-copy: only mode precopy works towards this host'),
    feature(
      'userfaultfd events (fork, remap, remove, unmap)',
      has(
        uffd.UFFD_FEATURE_EVENT_FORK |
          uffd.UFFD_FEATURE_EVENT_REMAP |
          uffd.UFFD_FEATURE_EVENT_REMOVE |
          uffd.UFFD_FEATURE_EVENT_UNMAP,
      ),
      'no post-copy: the workload could not change its memory map meanwhile',
    ),
    feature(
      'userfaultfd thread ids',
      has(uffd.UFFD_FEATURE_THREAD_ID),
      'prefetching cannot tell threads apart',
    ),
  ]
}
