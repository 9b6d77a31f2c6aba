import type { FdInfo } from '../../proc/fdinfo.js'
import { eventfd } from './eventfd.js'
import type { FdKind, ListImage } from './kind.js'
import { pipe } from './pipe.js'
import { regularFile } from './regular-file.js'
import { timerfd } from './timerfd.js'

export const fdKinds: readonly FdKind[] = [regularFile, pipe, eventfd, timerfd]

/** Images of single kinds, beside files.img. */
export const ownImages: readonly ListImage[] = fdKinds.flatMap(({ images = [] }) => images)

export function kindOf(info: FdInfo): FdKind | undefined {
  return fdKinds.find((kind) => kind.matches(info))
}
