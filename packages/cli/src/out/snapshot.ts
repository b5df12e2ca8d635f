/** Snapshots as people read them: a tree, and what was taken. */
import type { Snapshot } from '@wadah/api/schema/snapshot'
import type { Cli } from '../cli.ts'
import { formatBytes, formatTook } from '../text/format.ts'

export type Line = { lead: string; snapshot: Snapshot }

/** In the order of a tree, each with the lines that lead to it. Pure. */
export function snapshotTree(items: readonly Snapshot[]): Line[] {
  const ids = new Set(items.map((s) => s.id))
  const below = (id: string | undefined) =>
    items.filter((s) => (s.parent !== undefined && ids.has(s.parent) ? s.parent : undefined) === id)
  const out: Line[] = []
  const walk = (id: string | undefined, lead: string): void => {
    const children = below(id)
    children.forEach((snapshot, i) => {
      const last = i === children.length - 1
      // A line of descent that does not branch stays where it is.
      const alone = children.length === 1
      out.push({ lead: alone ? lead : `${lead}${last ? '└ ' : '├ '}`, snapshot })
      walk(snapshot.id, alone ? lead : `${lead}${last ? '  ' : '│ '}`)
    })
  }
  walk(undefined, '')
  return out
}

export type Taken = {
  name: string
  consistency: NonNullable<Snapshot['consistency']>
  note?: string
  stall_ms?: number
  frozen_ms?: number
  ram_bytes?: number
}

/** One line; what is less than could be had is said besides. */
export function takenText(cli: Cli, vm: string, taken: Taken): string {
  const { t } = cli
  if (taken.note !== undefined) cli.out.warn(t('snapshot.less', { note: taken.note }))
  const more = [
    taken.ram_bytes === undefined ? '' : t('snapshot.with_ram', { size: formatBytes(taken.ram_bytes) }),
    taken.stall_ms === undefined ? '' : t('snapshot.stalled', { took: formatTook(taken.stall_ms) }),
    taken.frozen_ms === undefined ? '' : t('snapshot.was_frozen', { took: formatTook(taken.frozen_ms) }),
  ].filter(Boolean)
  return [t('snapshot.taken', { vm, name: taken.name, is: t(`snapshot.is.${taken.consistency}`) }), ...more].join(', ')
}
