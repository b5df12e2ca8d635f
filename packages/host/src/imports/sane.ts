/** What a reader of heads answers, and the bounds that all of them keep. */

export type Head = { size_bytes: number; notes: string[] }
export const SECTOR = 512

/** A size that QEMU and we can hold; 8 EiB and the like are refused here. Rounded up to whole sectors. */
export function sane(bytes: bigint): number | string {
  if (bytes <= 0n) return `its size is ${bytes} bytes`
  if (bytes > 2n ** 50n) return `it claims a size of ${bytes} bytes, which is more than any disk here can have`
  return Math.ceil(Number(bytes) / SECTOR) * SECTOR
}
