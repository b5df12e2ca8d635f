/** A view of records that are given, for pure decisions. */
import type { Kind, Rec } from '@wadah/store/store'

export type Given = { kind: string; id: string; value: unknown }
export const record = (kind: { name: string }, id: string, value: unknown): Given => ({ kind: kind.name, id, value })

export function viewOf(all: readonly Given[]) {
  const recs = all.map((r): Rec<unknown> => ({ ...r, created: 1, modified: 1, version: 1 }) as Rec<unknown>)
  return {
    get: <T>(kind: Kind<T>, id: string) => recs.find((r) => r.kind === kind.name && r.id === id) as Rec<T> | undefined,
    list: <T>(kind: Kind<T>) => recs.filter((r) => r.kind === kind.name) as Rec<T>[],
  }
}
