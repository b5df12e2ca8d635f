/** How busy hosts are: when it is said, and who goes by it. */
import { freshness } from '@wadah/scheduler/load'
import { put } from '@wadah/store/store'
import { openMemoryStore } from '@wadah/store/testing/memory'
import { CachedView } from '@wadah/store/cache'
import { describe, expect, test } from 'vitest'
import { busyOf, isNews, loadOf, loadRecord, vmLoadOf } from '../../src/members/load.ts'
import { type LoadRecord, loadKind } from '../../src/members/records.ts'

const said = (cores: number | undefined, vms: Record<string, number> = {}, at_ms = 0): LoadRecord =>
  loadRecord({ ...(cores === undefined ? {} : { cores }), vms }, at_ms)

describe('what is news', () => {
  test.each<[string, LoadRecord | undefined, LoadRecord, boolean]>([
    ['the first', undefined, said(0), true],
    ['as before', said(0.5, { a: 0.1 }), said(0.6, { a: 0.2 }, 20_000), false],
    ['a core more', said(0.5), said(1.5), true],
    ['a little more of much', said(8), said(9), false],
    ['a quarter more of much', said(8), said(10.5), true],
    ['a VM that is busy now', said(1, { a: 0 }), said(1, { a: 0.9 }), true],
    ['a VM that went, idle', said(1, { a: 0.1 }), said(1), false],
    ['a VM that went, busy', said(1, { a: 1 }), said(1), true],
    ['a host that can tell now', said(undefined, { a: 1 }), said(1, { a: 1 }), true],
    ['said long ago', said(0.5), said(0.5, {}, 120_000), true],
    ['a clock that was set back', said(0.5, {}, 500_000), said(0.5, {}, 0), true],
  ])('%s: %#', (_, before, now, news) => {
    expect(isNews(before, now)).toBe(news)
  })
  test('it is said anew before it is taken for stale', () => {
    const first = said(0.5, {}, 1_000_000)
    let at_ms = first.at_ms
    while (!isNews(first, said(0.5, {}, at_ms))) at_ms += 20_000
    expect(freshness({ cores: 0.5, at_ms: first.at_ms }, at_ms)).toBe('measured')
  })
})

test('of a VM where it is, of a host as long as it is so', async () => {
  const store = openMemoryStore()
  await store.txn([], [put(loadKind, 'host-a', said(1.234, { 'vm-a': 0.5 }, 1_000))], 'made')
  const view = await CachedView.open(store)
  try {
    expect(loadOf(view, 'host-a')).toEqual({ load: { cores: 1.23, at_ms: 1_000 } })
    expect(loadOf(view, 'host-b')).toEqual({})
    expect(vmLoadOf(view, 'vm-a', 'host-a')).toEqual({ load: { cores: 0.5, at_ms: 1_000 } })
    for (const host of ['host-b', undefined]) expect(vmLoadOf(view, 'vm-a', host)).toEqual({})
    expect(vmLoadOf(view, 'vm-b', 'host-a')).toEqual({})
    expect(busyOf(view, 'host-a', 60_000)).toEqual({ cpu_busy: 1.23 })
    expect(busyOf(view, 'host-a', 3_600_000)).toEqual({})
  } finally {
    await view.close()
    await store.close()
  }
})
