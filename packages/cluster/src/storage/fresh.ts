/**
 * Whether a host of a shared pool reads at once what another has written, as a guest must when its VM has moved there, and back. Two hosts take turns
 * on one file: each must find what the other wrote last, in place and behind what was the file's end, then writes itself.
 */
import { fail } from '@wadah/api/fault'
import type { PoolDefinition, SharedPools, TrialLook } from '@wadah/ports/volumes'

/** Turns are counted from 0: the first host has the even ones, and in the last it only looks. */
export const LAST_TURN = 10

export type Stale = {
  /** Who found it: a reader that had the file open, one that opened it, or both. */
  by: 'kept' | 'anew' | 'both'
  /** What of before: the content, or the length, so that what lies behind it reads as zeros. */
  what: 'content' | 'length'
  /** What is mounted there. */
  mounted: string
}

/** Turn n writes this into the first block, which is written again each time, and into block n + 1, which makes the file longer. */
const textOf = (mark: string, turn: number) => `${mark} ${turn}`
const blocksOf = (turn: number) => [0, turn + 1]

/** Pure: what is older in what was read than what the given turn had written. */
export function judgeLook(mark: string, turn: number, seen: TrialLook): Stale | undefined {
  const wrong = (texts: string[]) => !blocksOf(turn).every((_, i) => texts[i] === textOf(mark, turn))
  const { mounted } = seen
  const [kept, anew] = [wrong(seen.kept), wrong(seen.anew)]
  if (kept || anew) {
    const rewritten = seen.kept[0] !== textOf(mark, turn) || seen.anew[0] !== textOf(mark, turn)
    return { by: kept && anew ? 'both' : kept ? 'kept' : 'anew', what: rewritten ? 'content' : 'length', mounted }
  }
  return seen.length === turn + 2 ? undefined : { by: 'both', what: 'length', mounted }
}

/**
 * One host's turn. It looks once more when it has written: what a cache holds, it holds then, and the next look is worth something.
 * @returns what was older than it should be; then nothing is written
 */
export async function takeTurn(
  shared: SharedPools,
  pool: PoolDefinition,
  name: string,
  mark: string,
  turn: number,
): Promise<Stale | undefined> {
  if (turn > 0) {
    const stale = judgeLook(mark, turn - 1, await shared.look(pool, name, blocksOf(turn - 1)))
    if (stale) return stale
  }
  if (turn === LAST_TURN) return undefined
  await shared.writeBlocks(pool, name, blocksOf(turn), textOf(mark, turn))
  await shared.look(pool, name, blocksOf(turn))
  return undefined
}

const BY = {
  kept: 'by whoever has the file open already',
  anew: 'by whoever opens the file then',
  both: 'whether the file is open already or opened then',
}
const WHAT = {
  content: { found: 'what was there before', effect: 'would find an older disk' },
  length: { found: 'a file as short as before', effect: 'would find zeros where its disk has grown' },
}

/** What is wrong and what would help, in words. */
export function staleFault(path: string, names: { writer: string; reader: string }, stale: Stale): Error {
  const { found, effect } = WHAT[stale.what]
  const where = `${BY[stale.by]}, ${stale.mounted || 'an unknown file system'} there`
  return fail(
    'wrong_state',
    `What ${names.writer} has written to a file in ${path} and flushed is not read at once on ${names.reader}, but ${found} (${where}): a cache answers. A VM that moves there ${effect}.`,
    { field: '/path', remedy: remedyOf(stale.mounted, stale.what) },
  )
}

/** Pure. */
export function remedyOf(mounted: string, what: Stale['what']): string {
  // What was seen to help (docs/storage.md): with O_DIRECT contents are fresh, whatever the caches; the length is not.
  if (mounted === 'fuse.glusterfs')
    return what === 'length'
      ? 'gluster volume set VOLUME performance.stat-prefetch off; and mount it on every host with -o attribute-timeout=0'
      : 'gluster volume set VOLUME group virt; then try it again'
  if (mounted.startsWith('nfs')) return 'mount it on every host with noac and without nocto'
  return 'mount it on every host so that its client caches neither contents nor attributes'
}
