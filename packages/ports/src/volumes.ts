/** Disks, as the cluster asks for them. */
export type PoolDefinition = { id: string; path: string; direct_io: boolean }
export type PoolFacts = { capacity_bytes: number; free_bytes: number; direct_io: boolean; file_system: string }
export type VolumeDefinition = {
  id: string
  pool: string
  format: 'qcow2' | 'raw'
  size_bytes: number
  /** The volume it is a linked clone of, in the same pool. */
  base?: { id: string; format: 'qcow2' | 'raw' }
}
export type Progress = (done_bytes: number, total_bytes: number) => void
export type VolumeWork = { signal: AbortSignal; progress?: Progress; log?: (line: string) => void }
/** Bytes both ways. */
export interface ByteStream {
  readonly data: AsyncIterable<Uint8Array>
  /** A promise when the other side does not take it at once: wait for it before the next write. */
  write(data: Uint8Array): void | Promise<void>
  close(): void
}
/** A disk that may be read over a stream. `ended`: nothing has it open any more; settles, never rejects, soon after `close`. */
export type ServedVolume = ByteStream & { readonly ended: Promise<void> }

/** What is read of a file: how many blocks it has by what QEMU is told, the texts of those asked for ('' beyond its end), and what is mounted there. */
export type TrialLook = { length: number; kept: string[]; anew: string[]; mounted: string }

/** Marks in a pool's own folder, and the locks that QEMU takes: to find out whether several hosts mean the same pool. */
export interface SharedPools {
  mark(pool: PoolDefinition, name: string, text: string): Promise<void>
  read(pool: PoolDefinition, name: string): Promise<string | undefined>
  unmark(pool: PoolDefinition, name: string): Promise<void>
  /** Holds a lock on a mark until the returned function is called, for a minute at most. */
  hold(pool: PoolDefinition, name: string): Promise<() => Promise<void>>
  /** Whether nobody, on whatever host, holds a lock on it. */
  isFree(pool: PoolDefinition, name: string): Promise<boolean>
  /** Writes a text into blocks of a mark's file, as QEMU writes a disk that it flushes: in place, or beyond its end. */
  writeBlocks(pool: PoolDefinition, name: string, blocks: readonly number[], text: string): Promise<void>
  /** Reads them as QEMU does: `kept` by who has had the file open since the first look, for a minute at most; `anew` by who opens it now. */
  look(pool: PoolDefinition, name: string, blocks: readonly number[]): Promise<TrialLook>
  /** Closes what `look` keeps open. */
  letGo(pool: PoolDefinition, name: string): Promise<void>
  /** What is mounted there, and how: `what` is the same after a restart of this host, `which` is of this one mount. */
  mounted(pool: PoolDefinition): Promise<{ what: string; which: string }>
}

/** Every call is idempotent: done twice is done once. Paths are made here from ids alone. */
export interface Volumes {
  readonly shared: SharedPools
  /** Whether a folder may become a pool: an existing folder inside an allowed one, no link in the way, writable. Makes what the pool needs inside. */
  openPool(pool: PoolDefinition): Promise<PoolFacts>
  facts(pool: PoolDefinition): Promise<PoolFacts>
  /** Takes away what openPool made, if it is empty. */
  closePool(pool: PoolDefinition): Promise<void>
  path(pool: PoolDefinition, volume: { id: string; format: 'qcow2' | 'raw' }): string
  /**
   * What a guest would read of it, with what it stands on, spoken as NBD over one stream; as a `layer` the file as it is, without what it
   * stands on. Nobody may write it meanwhile.
   */
  serve(pool: PoolDefinition, volume: VolumeDefinition, signal: AbortSignal, as?: 'layer'): Promise<ServedVolume>
  /**
   * From what another host serves a volume that stands by itself, or, as a `layer`, on the same base as there, which need not be here yet:
   * whole or not at all, and flushed. What has its name already is never replaced. `bytes`: what is expected to be written; `no_room` at
   * once where less is free.
   */
  receive(
    pool: PoolDefinition,
    volume: VolumeDefinition,
    from: { stream: ByteStream; bytes: number; bytes_per_s?: number; as?: 'layer' },
    work: VolumeWork,
  ): Promise<void>
  /** An empty volume. `no_room` when the file system is full. */
  create(pool: PoolDefinition, volume: VolumeDefinition, work: VolumeWork): Promise<void>
  /** `linked`: a qcow2 on top of `from`. `full`: a copy that stands by itself, flattened. `delta`: a copy of the topmost layer on the same base. The size may be larger than that of `from`. */
  clone(
    pool: PoolDefinition,
    from: { pool: PoolDefinition; volume: VolumeDefinition },
    to: VolumeDefinition,
    how: 'linked' | 'full' | 'delta',
    work: VolumeWork,
  ): Promise<void>
  /** Makes a volume that no QEMU has open larger; `volume` as it was before. */
  grow(pool: PoolDefinition, volume: VolumeDefinition, to_bytes: number, work: VolumeWork): Promise<void>
  /** Moves a file that a builder made into the pool as this volume (rename, or copy across file systems). */
  adopt(pool: PoolDefinition, file: string, volume: VolumeDefinition, work: VolumeWork): Promise<void>
  /** Read-only for everybody, or writable by one uid only. */
  grant(pool: PoolDefinition, volume: VolumeDefinition, to: { uid: number } | 'read-only'): Promise<void>
  delete(pool: PoolDefinition, volume: { id: string; format: 'qcow2' | 'raw' }): Promise<void>
  exists(pool: PoolDefinition, volume: { id: string; format: 'qcow2' | 'raw' }): Promise<boolean>
  allocatedBytes(pool: PoolDefinition, volume: { id: string; format: 'qcow2' | 'raw' }): Promise<number>
  /** What lies in the pool, half-made files included: to find leftovers. */
  list(pool: PoolDefinition): Promise<{ id: string; format: 'qcow2' | 'raw'; temporary: boolean }[]>
}
