import { PageferryError } from '@pageferry/base'

/**
 * Protocol versions that this build speaks, best last. proto/README.md lists the changes of each. Version 1 had the
 * fault lane on the port of the others; the source no longer listens for it there.
 */
export const supportedVersions: readonly number[] = [2]

/**
 * The source's choice among the versions that the destination offers: the highest that both speak.
 * @throws PageferryError VERSION_MISMATCH with both lists in `details`
 */
export function negotiate(offered: readonly number[]): number {
  const common = supportedVersions.filter((version) => offered.includes(version))
  if (common.length === 0) {
    throw new PageferryError(
      'VERSION_MISMATCH',
      `no common protocol version: offered ${offered.join(', ') || 'none'}, supported ${supportedVersions.join(', ')}; update the older side`,
      { details: { offered: [...offered], supported: [...supportedVersions] } },
    )
  }
  return Math.max(...common)
}
