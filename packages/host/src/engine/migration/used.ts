/** How much of a guest's RAM holds something: pages it never wrote cost a move next to nothing. proc(5), smaps. */
import { readFile } from 'node:fs/promises'

/** Smaller mappings are QEMU's own. */
const LEAST_BYTES = 16 * 2 ** 20

/** Pure. Large mappings that hold no code: under TCG the translated code is as large as RAM may be. */
export function ramIn(smaps: string): number {
  let counts = false
  let bytes = 0
  for (const line of smaps.split('\n')) {
    const mapping = /^([0-9a-f]+)-([0-9a-f]+) (\S{4}) /.exec(line)
    if (mapping) {
      const size = Number.parseInt(mapping[2] as string, 16) - Number.parseInt(mapping[1] as string, 16)
      counts = size >= LEAST_BYTES && !(mapping[3] as string).includes('x')
      continue
    }
    const resident = counts ? /^(?:Rss|Swap):\s+(\d+) kB/.exec(line)?.[1] : undefined
    if (resident !== undefined) bytes += Number(resident) * 1024
  }
  return bytes
}

export const ramOf = async (pid: number): Promise<number> => ramIn(await readFile(`/proc/${pid}/smaps`, 'latin1'))
