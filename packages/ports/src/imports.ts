/** Disks from elsewhere and to elsewhere, as the cluster asks for them. */
import type { ImageHardware, ImportFormat } from '@wadah/api/schema/imports'
import type { PoolDefinition, VolumeDefinition, VolumeWork } from './volumes.ts'

/** A file that has come in whole, and what it is. */
export type Staged = { size_bytes: number; sha256: string }

/** One disk of what came in. `part`: its bytes of the file, when it lies inside an archive. */
export type FoundDisk = {
  format: Exclude<ImportFormat, 'ova'> | 'empty'
  /** As the guest sees it; whole sectors. */
  size_bytes: number
  part?: { offset: number; bytes: number }
}
export type Found = {
  format: ImportFormat
  packed_by?: 'gzip' | 'xz' | 'zstd'
  /** In the order the guest sees them. */
  disks: FoundDisk[]
  /** From an OVA's description. */
  hardware?: ImageHardware
  description?: string
  /** What was left out or is worth knowing. */
  notes: string[]
}
export type ImportWork = { signal: AbortSignal; log?: (line: string) => void; progress?: (fraction: number) => void }

/**
 * Each import has a folder of its own in the pool, named by an id. Every call is idempotent; `clean` takes back whatever was begun.
 * Nothing that a file says chooses another file.
 */
export interface Imports {
  /** Takes in an upload. @throws `too_large`, `image_corrupt` (checksum), `no_room` */
  receive(
    pool: PoolDefinition,
    id: string,
    data: AsyncIterable<Uint8Array>,
    options: { limit_bytes: number; sha256?: string; signal: AbortSignal },
  ): Promise<Staged>
  /** Whether a URL may be asked at all: http or https, no password in it. @throws `invalid` */
  checkUrl(url: string): void
  /**
   * Downloads; goes on where an earlier try was cut off, if the server still has the same file. Refuses addresses that the
   * administrator did not allow, at every redirect. @throws `forbidden`, `too_large`, `unreachable`, `timeout`, `image_corrupt`
   */
  download(
    pool: PoolDefinition,
    id: string,
    source: { url: string; sha256?: string; limit_bytes: number },
    work: ImportWork,
  ): Promise<Staged>
  /** Unpacks if needed, finds out what it is, and reads every head. @throws `image_corrupt`, `invalid`, `too_large` */
  inspect(
    pool: PoolDefinition,
    id: string,
    /** `limit_bytes`: of the file when unpacked; `disk_limit_bytes`: of each disk as the guest sees it. */
    wanted: { format?: ImportFormat; limit_bytes: number; disk_limit_bytes: number },
    work: ImportWork,
  ): Promise<Found>
  /** Makes one of its disks a volume of the pool, a qcow2 or raw that stands by itself. */
  convert(pool: PoolDefinition, id: string, disk: FoundDisk, volume: VolumeDefinition, work: VolumeWork): Promise<void>
  /** Writes volumes (`volume`s whose files nobody writes) into one file of another format. */
  pack(
    pool: PoolDefinition,
    id: string,
    request: {
      volumes: { pool: PoolDefinition; volume: VolumeDefinition }[]
      format: ImportFormat
      name: string
      hardware: ImageHardware
    },
    work: ImportWork,
  ): Promise<{ size_bytes: number }>
  /** What `pack` made. */
  read(pool: PoolDefinition, id: string, signal: AbortSignal): AsyncIterable<Uint8Array>
  clean(pool: PoolDefinition, id: string): Promise<void>
  /** Ids that have a folder: to find leftovers. */
  list(pool: PoolDefinition): Promise<string[]>
}
