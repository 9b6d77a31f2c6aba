import { criu } from '#generated/criu'

/** Kinds of open files (FdinfoEntry.type, FileEntry.type). */
export const FdType = criu.FdType
export type FdType = criu.FdType
export const RemapType = criu.RemapType
export const Machine = criu.Machine
export const RegsMode = criu.RegsMode
export const SeccompMode = criu.SeccompMode
export const Lsm = criu.Lsm

/** InventoryEntry.img_version of a directory whose files begin with the common magic. */
export const IMG_VERSION = 2

/** TaskCoreEntry.task_state. */
export const TASK_STATE = { ALIVE: 1, DEAD: 2, STOPPED: 3, ZOMBIE: 6 } as const

/** Bits of VmaEntry.status: the kind of the area, which decides how it is restored. */
export const VMA_STATUS = {
  /** Its contents are dumped; every area but vsyscall and foreign ones has it. */
  REGULAR: 1 << 0,
  STACK: 1 << 1,
  VSYSCALL: 1 << 2,
  VDSO: 1 << 3,
  HEAP: 1 << 5,
  FILE_PRIVATE: 1 << 6,
  FILE_SHARED: 1 << 7,
  ANON_SHARED: 1 << 8,
  ANON_PRIVATE: 1 << 9,
  SYSVIPC: 1 << 10,
  SOCKET: 1 << 11,
  VVAR: 1 << 12,
  AIORING: 1 << 13,
  MEMFD: 1 << 14,
  SHADOW_STACK: 1 << 15,
  GUARD: 1 << 16,
  /** Ours, not CRIU's: locked with MLOCK_ONFAULT. */
  LOCK_ON_FAULT: 1 << 29,
} as const
