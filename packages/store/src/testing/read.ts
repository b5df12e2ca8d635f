/** Reading a store in tests. */
import { expect } from 'vitest'
import type { Change, Compacted, Page, Store } from '../store.ts'

export function page<T>(answer: Page<T> | Compacted): Page<T> {
  expect(answer.type).toBe('page')
  return answer as Page<T>
}

/** Reads a watch up to and including a revision. */
export async function changesUpTo(store: Store, prefix: string, after: number, upTo: number): Promise<Change[]> {
  const changes: Change[] = []
  const stop = new AbortController()
  for await (const item of store.watch(prefix, after, stop.signal)) {
    if (item.type === 'compacted') throw new Error('compacted')
    if (item.type !== 'progress') changes.push(item)
    if (item.revision >= upTo && (item.type === 'progress' || item.last)) stop.abort()
  }
  return changes
}
