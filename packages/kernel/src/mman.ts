/**
 * Numbers of sys/mman.h on x86_64 (asm-generic/mman-common.h, linux/mman.h), for images and for calls in other
 * processes.
 */

export const PROT_READ = 1
export const PROT_WRITE = 2
export const PROT_EXEC = 4

export const MAP_SHARED = 1
export const MAP_PRIVATE = 2
export const MAP_ANONYMOUS = 0x20
export const MAP_GROWSDOWN = 0x100
export const MAP_LOCKED = 0x2000
export const MAP_NORESERVE = 0x4000
export const MAP_FIXED_NOREPLACE = 0x10_0000

export const MREMAP_MAYMOVE = 1
export const MREMAP_FIXED = 2

export const MADV_NORMAL = 0
export const MADV_RANDOM = 1
export const MADV_SEQUENTIAL = 2
export const MADV_DONTNEED = 4
export const MADV_DONTFORK = 10
export const MADV_DOFORK = 11
export const MADV_MERGEABLE = 12
export const MADV_UNMERGEABLE = 13
export const MADV_HUGEPAGE = 14
export const MADV_NOHUGEPAGE = 15
export const MADV_DONTDUMP = 16
export const MADV_DODUMP = 17
export const MADV_WIPEONFORK = 18
export const MADV_KEEPONFORK = 19
/** Linux 6.13 */
export const MADV_GUARD_INSTALL = 102

export const MCL_FUTURE = 2
export const MCL_ONFAULT = 4
