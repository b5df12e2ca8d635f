/** Sizes and partition tables of disk images. Pure. */

const SECTOR = 512
const MIB = 1024 * 1024
/** The boot partition: two kernels with their initrds (about 25 MiB), a third while one is replaced, and room. */
const ESP_MIB = 64
const ESP_START = 2048
/** Type "Linux root (x86-64)" of the Discoverable Partitions Specification, and "EFI system". */
const ROOT_TYPE = '4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709'
const ESP_TYPE = 'C12A7328-F81F-11D2-BA4B-00A0C93EC93B'

export interface Layout {
  disk_bytes: number
  esp: { offset_bytes: number; sectors: number }
  root: { offset_bytes: number; size_kib: number }
  /** Input for sfdisk(8). */
  sfdisk: string
}

/**
 * Lay out a GPT disk with a boot partition and a root file system.
 * @param tree what has to fit: apparent bytes and number of files
 * @param wanted_mib size asked for; the disk is larger when the tree needs it
 */
export function diskLayout(tree: { bytes: number; files: number }, wanted_mib: number): Layout {
  const disk_mib = Math.max(wanted_mib, 1 + ESP_MIB + rootMib(tree) + 1)
  const rootStart = ESP_START + (ESP_MIB * MIB) / SECTOR
  // The backup table takes the last 33 sectors; partitions stay aligned to 1 MiB.
  const rootSectors = ((disk_mib - 1) * MIB) / SECTOR - rootStart
  return {
    disk_bytes: disk_mib * MIB,
    esp: { offset_bytes: ESP_START * SECTOR, sectors: (ESP_MIB * MIB) / SECTOR },
    root: { offset_bytes: rootStart * SECTOR, size_kib: (rootSectors * SECTOR) / 1024 },
    sfdisk: [
      'label: gpt',
      `start=${ESP_START}, size=${(ESP_MIB * MIB) / SECTOR}, type=${ESP_TYPE}, name=boot, attrs=LegacyBIOSBootable`,
      `start=${rootStart}, size=${rootSectors}, type=${ROOT_TYPE}, name=root`,
      '',
    ].join('\n'),
  }
}

/** Room a tree takes as ext4: blocks of 4 KiB, inodes, a journal, and a fifth to live in. */
function rootMib(tree: { bytes: number; files: number }): number {
  const bytes = tree.bytes + tree.files * (2048 + 256) + 64 * MIB
  return Math.ceil((bytes * 1.2) / MIB)
}

export interface Room {
  /** A private memory file system of this size, or undefined: work on the disk. */
  tmpfs_bytes?: number
  /** What must be free on the disk that holds the work folder. */
  disk_bytes: number
}

const TREE_BYTES = 2 * 1024 * MIB
const RESULT_BYTES = 1024 * MIB

/**
 * Where to build. In memory when it has room twice over (another build, running guests), else on the disk.
 * @param memory_bytes what /proc/meminfo calls MemAvailable
 */
export function chooseRoom(memory_bytes: number): Room {
  if (memory_bytes >= 2 * TREE_BYTES) return { tmpfs_bytes: TREE_BYTES + RESULT_BYTES, disk_bytes: RESULT_BYTES }
  return { disk_bytes: TREE_BYTES + 2 * RESULT_BYTES }
}
