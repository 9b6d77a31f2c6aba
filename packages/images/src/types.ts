import type { criu } from '#generated/criu'

type IsRepeated<T> = NonNullable<T> extends readonly unknown[] ? true : false

type Value<T> = T extends Uint8Array
  ? Uint8Array
  : T extends { low: number; high: number; unsigned: boolean }
    ? bigint
    : T extends readonly (infer U)[]
      ? Value<U>[]
      : T extends object
        ? Message<T>
        : T

/**
 * The plain form of a generated message: bigint instead of Long, no null, and repeated fields always present. An absent
 * repeated field is empty: the format does not distinguish the two.
 */
export type Message<T> = {
  [K in keyof T as K extends '$unknowns' ? never : IsRepeated<T[K]> extends true ? never : K]: Value<
    Exclude<T[K], null>
  >
} & {
  [K in keyof T as K extends '$unknowns' ? never : IsRepeated<T[K]> extends true ? K : never]-?: Value<
    NonNullable<T[K]>
  >
}

export type InventoryEntry = Message<criu.InventoryEntry.$Properties>
export type PstreeEntry = Message<criu.PstreeEntry.$Properties>
export type TaskKobjIdsEntry = Message<criu.TaskKobjIdsEntry.$Properties>

export type CoreEntry = Message<criu.CoreEntry.$Properties>
export type TaskCoreEntry = Message<criu.TaskCoreEntry.$Properties>
export type ThreadCoreEntry = Message<criu.ThreadCoreEntry.$Properties>
export type AttributeEntry = Message<criu.AttributeEntry.$Properties>
export type ThreadSasEntry = Message<criu.ThreadSasEntry.$Properties>
export type ThreadInfoX86 = Message<criu.ThreadInfoX86.$Properties>
export type UserX86Regs = Message<criu.UserX86Regs.$Properties>
export type UserX86Fpregs = Message<criu.UserX86Fpregs.$Properties>
export type UserX86Xsave = Message<criu.UserX86Xsave.$Properties>
export type UserDesc = Message<criu.UserDesc.$Properties>
export type RseqEntry = Message<criu.RseqEntry.$Properties>
export type SaEntry = Message<criu.SaEntry.$Properties>
export type SiginfoEntry = Message<criu.SiginfoEntry.$Properties>
export type SignalQueueEntry = Message<criu.SignalQueueEntry.$Properties>
export type RlimitEntry = Message<criu.RlimitEntry.$Properties>
export type TaskRlimitsEntry = Message<criu.TaskRlimitsEntry.$Properties>
export type ItimerEntry = Message<criu.ItimerEntry.$Properties>
export type PosixTimerEntry = Message<criu.PosixTimerEntry.$Properties>
export type TaskTimersEntry = Message<criu.TaskTimersEntry.$Properties>
export type CredsEntry = Message<criu.CredsEntry.$Properties>

export type MmEntry = Message<criu.MmEntry.$Properties>
export type VmaEntry = Message<criu.VmaEntry.$Properties>
export type MemoryPolicyEntry = Message<criu.MemoryPolicyEntry.$Properties>
export type AioRingEntry = Message<criu.AioRingEntry.$Properties>

export type FdinfoEntry = Message<criu.FdinfoEntry.$Properties>
export type FileEntry = Message<criu.FileEntry.$Properties>
export type FownEntry = Message<criu.FownEntry.$Properties>
export type RegFileEntry = Message<criu.RegFileEntry.$Properties>
export type RemapFilePathEntry = Message<criu.RemapFilePathEntry.$Properties>
export type FileLockEntry = Message<criu.FileLockEntry.$Properties>
export type PipeEntry = Message<criu.PipeEntry.$Properties>
export type PipeDataEntry = Message<criu.PipeDataEntry.$Properties>
export type EventfdFileEntry = Message<criu.EventfdFileEntry.$Properties>
export type TimerfdEntry = Message<criu.TimerfdEntry.$Properties>
export type FsEntry = Message<criu.FsEntry.$Properties>

export type Timespec = Message<criu.Timespec.$Properties>
export type TimensEntry = Message<criu.TimensEntry.$Properties>
export type SeccompFilter = Message<criu.SeccompFilter.$Properties>
export type SeccompEntry = Message<criu.SeccompEntry.$Properties>
export type PagemapHead = Message<criu.PagemapHead.$Properties>
export type PagemapEntry = Message<criu.PagemapEntry.$Properties>

/** A message of pipes-data.img with the bytes that follow it; `bytes` is their number. */
export type PipeData = PipeDataEntry & { data: Uint8Array }

/** Messages by their name in proto/criu. */
export interface Messages {
  InventoryEntry: InventoryEntry
  PstreeEntry: PstreeEntry
  TaskKobjIdsEntry: TaskKobjIdsEntry
  CoreEntry: CoreEntry
  MmEntry: MmEntry
  FdinfoEntry: FdinfoEntry
  FileEntry: FileEntry
  FsEntry: FsEntry
  RemapFilePathEntry: RemapFilePathEntry
  FileLockEntry: FileLockEntry
  PipeDataEntry: PipeData
  TimensEntry: TimensEntry
  SeccompEntry: SeccompEntry
}
