import { createHash } from 'node:crypto'
import { closeSync, openSync, readFileSync } from 'node:fs'
import { arch, release } from 'node:os'
import { addressOf, PageferryError, pageBytes } from '@pageferry/base'
import { memory, processes } from '@pageferry/kernel'
import { bootId } from './kinds/clocks.js'
import { readMaps } from './proc/maps.js'

/**
 * Facts that decide whether a process can move between two machines: some must be equal, of others one side needs more.
 */
export interface HostFacts {
  kernelRelease: string
  machine: string
  bootId: string
  vdsoSha256: Uint8Array
  xcr0: bigint
  xsaveBytes: number
  cpuFlags: string[]
  vdsoPages: number
  vvarPages: number
}

export function hostFacts(): HostFacts {
  const maps = readMaps(process.pid)
  const vdso = maps.find((area) => area.name === '[vdso]')
  const vvar = maps
    .filter((area) => area.name.startsWith('[vvar'))
    .reduce((sum, area) => sum + area.nrPages, 0)
  const code = Buffer.alloc((vdso?.nrPages ?? 0) * pageBytes)
  if (vdso !== undefined) {
    const memFd = openSync('/proc/self/mem', 'r')
    memory.pread(memFd, addressOf(vdso.start), code)
    closeSync(memFd)
  }
  const features = processes.cpuXfeatures()
  const flags = /^flags\s*:\s*(.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? ''
  return {
    kernelRelease: release(),
    machine: arch(),
    bootId: bootId(),
    vdsoSha256:
      code.length === 0 ? new Uint8Array(0) : new Uint8Array(createHash('sha256').update(code).digest()),
    xcr0: features.xcr0,
    xsaveBytes: features.size,
    cpuFlags: flags.split(' ').filter((flag) => flag !== ''),
    vdsoPages: vdso?.nrPages ?? 0,
    vvarPages: vvar,
  }
}

/** Throws REFUSED with the reason when a process of `source` cannot run on `destination`. */
export function checkHosts(source: HostFacts, destination: HostFacts): void {
  const refuse = (message: string): never => {
    throw new PageferryError('REFUSED', message)
  }
  if (source.machine !== destination.machine) {
    refuse(`the source is ${source.machine}, the destination ${destination.machine}`)
  }
  if (
    !Buffer.from(source.vdsoSha256).equals(destination.vdsoSha256) ||
    source.vvarPages !== destination.vvarPages
  ) {
    refuse(
      `the kernels' vdso differ (source ${source.kernelRelease}, destination ${destination.kernelRelease}): ` +
        'both machines need the same kernel build',
    )
  }
  const missing = source.cpuFlags.filter((flag) => !destination.cpuFlags.includes(flag))
  if ((source.xcr0 & ~destination.xcr0) !== 0n || missing.length > 0) {
    refuse(
      `the destination's processor lacks features that the workload may use: ${missing.slice(0, 20).join(' ') || 'XSAVE components'}`,
    )
  }
}
