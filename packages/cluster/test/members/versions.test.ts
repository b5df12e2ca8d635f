/** Which builds may be hosts of one cluster, and when what is new may be written. */
import { enterBuild, judgeBuild, nextLevel, raiseLevel } from '@wadah/cluster/members/versions'
import { CLUSTER, clusterKind } from '@wadah/cluster/members/records'
import { type Build, hostKind } from '@wadah/cluster/records'
import { put } from '@wadah/store/store'
import { openMemoryStore } from '@wadah/store/testing/memory'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'

const build = (version: string, oldest = 1, newest = 1): Build => ({ version, oldest, newest })
const host = (name: string, b?: Build) => ({ id: `host-${name}`, name, ...(b ? { build: b } : {}) })

describe('judgeBuild', () => {
  test.each([
    ['the same', '1.4.0', ['1.4.2'], true],
    ['the next one', '1.5.0', ['1.4.0'], true],
    ['the one before', '1.3.9', ['1.4.0'], true],
    ['a cluster in the middle of an upgrade, and one of its two', '1.4.0', ['1.4.0', '1.5.0'], true],
    ['two on', '1.6.0', ['1.4.0'], false],
    ['two back', '1.2.0', ['1.4.0'], false],
    ['one on from the newest, two from the oldest', '1.6.0', ['1.5.0', '1.4.0'], false],
    ['another major one', '2.0.0', ['1.9.0'], false],
    ['what is no version', 'newest', ['1.4.0'], false],
    ['a pre-release of the next', '1.5.0-rc.1', ['1.4.0'], true],
    ['the only host', '7.0.0', [], true],
  ])('%s', (_what, own, others, right) => {
    const found = judgeBuild(
      { name: 'b', build: build(own) },
      others.map((v, i) => host(`a${i}`, build(v))),
      1,
    )
    expect(found === undefined).toBe(right)
  })

  test('says both versions, and which would do', () => {
    const two = judgeBuild({ name: 'b', build: build('1.6.0') }, [host('a', build('1.4.3'))], 1)
    expect(two?.detail).toBe(
      'b has wadahd 1.6.0, and a 1.4.3: hosts of one cluster may be one release apart, not more.',
    )
    expect(two?.remedy).toContain('install wadahd 1.3, 1.4 or 1.5 on b')
    const mixed = judgeBuild(
      { name: 'b', build: build('1.6.0') },
      [host('a', build('1.4.0')), host('c', build('1.5.0'))],
      1,
    )
    expect(mixed?.remedy).toContain('install wadahd 1.4 or 1.5 on b')
    const torn = judgeBuild(
      { name: 'b', build: build('1.6.0') },
      [host('a', build('1.1.0')), host('c', build('1.5.0'))],
      1,
    )
    expect(torn?.remedy).toContain('one release first')
  })

  test('the remedy is one that would be taken', () => {
    const minor = fc.integer({ min: 0, max: 6 })
    fc.assert(
      fc.property(minor, fc.array(minor, { minLength: 1, maxLength: 4 }), (own, others) => {
        const there = others.map((m, i) => host(`a${i}`, build(`1.${m}.0`)))
        const found = judgeBuild({ name: 'b', build: build(`1.${own}.0`) }, there, 1)
        expect(found === undefined).toBe(others.every((m) => Math.abs(m - own) <= 1))
        for (const version of found?.remedy.match(/\d+\.\d+/g) ?? [])
          expect(judgeBuild({ name: 'b', build: build(`${version}.0`) }, there, 1)).toBeUndefined()
      }),
    )
  })

  test('a host that never said what it runs is held against nobody', () => {
    expect(judgeBuild({ name: 'b', build: build('9.0.0') }, [host('a')], 1)).toBeUndefined()
  })

  test.each([
    [1, 1, 1, true],
    [2, 1, 2, true],
    [2, 2, 3, true],
    [2, 1, 1, false],
    [1, 2, 3, false],
  ])('records of level %d, a build that knows %d to %d: %s', (level, oldest, newest, right) => {
    const found = judgeBuild({ name: 'b', build: build('1.5.0', oldest, newest) }, [host('a', build('1.4.0'))], level)
    expect(found === undefined).toBe(right)
    if (right) return
    expect(found?.detail).toContain(`of level ${level}`)
    expect(found?.remedy).toContain(level < oldest ? `one that knows level ${level}` : 'the others have (1.4.0)')
  })
})

test.each([
  ['all can', [2, 3, 2], 2],
  ['one can not', [1, 2], undefined],
  ['one has not said', [2, undefined], undefined],
  ['nobody is there', [], undefined],
])('the level that %s', (_what, newest, level) => {
  const hosts = newest.map((n, i) => host(`a${i}`, n === undefined ? undefined : build('1.0.0', 1, n)))
  expect(nextLevel(1, hosts)).toBe(level)
})

async function ground(...hosts: ReturnType<typeof host>[]) {
  const store = openMemoryStore()
  const writes = hosts.map((h) => put(hostKind, h.id, { schema: 1, created_at: '', ...h, from_newer: true } as never))
  await store.txn(
    [],
    [put(clusterKind, CLUSTER, { schema: 1, id: 'c', created_at: '', level: 1 }), ...writes],
    'ground',
  )
  const builds = async () => {
    const page = await store.list(hostKind, { limit: 9 })
    return page.type === 'page' ? page.items.map((h) => h.value.build?.version) : []
  }
  return { store, builds }
}

test('a host that starts says what it runs, once; one that may not writes nothing', async () => {
  const { store, builds } = await ground(host('a', build('1.4.0')), host('b', build('1.4.0')))
  await enterBuild(store, 'host-b', build('1.5.0'))
  expect(await builds()).toEqual(['1.4.0', '1.5.0'])
  expect((await store.get(hostKind, 'host-b'))?.value).toMatchObject({ from_newer: true })
  const at = await store.current()
  await enterBuild(store, 'host-b', build('1.5.0'))
  await expect(enterBuild(store, 'host-b', build('1.6.0'))).rejects.toMatchObject({
    fault: { code: 'wrong_state', effect: 'none', detail: expect.stringContaining('its VMs run on') },
  })
  await expect(enterBuild(store, 'host-z', build('1.5.0'))).rejects.toMatchObject({ fault: { code: 'gone' } })
  expect(await store.current()).toBe(at)
})

test('two hosts that start at once with releases too far apart: one of them', async () => {
  const { store, builds } = await ground(host('a', build('1.5.0')), host('b', build('1.5.0')))
  const ended = await Promise.allSettled([
    enterBuild(store, 'host-a', build('1.4.0')),
    enterBuild(store, 'host-b', build('1.6.0')),
  ])
  expect(ended.map((e) => e.status).toSorted()).toEqual(['fulfilled', 'rejected'])
  expect(await builds()).toContain('1.5.0')
})

test('the level is raised once the last host can, and never under one that starts with less', async () => {
  const { store } = await ground(host('a', build('1.5.0', 1, 2)), host('b', build('1.4.0', 1, 1)))
  const level = async () => (await store.get(clusterKind, CLUSTER))?.value.level
  expect(await raiseLevel(store)).toBeUndefined()
  await enterBuild(store, 'host-b', build('1.5.0', 1, 2))
  // Back to the older one, or on: not both.
  const [raised, back] = await Promise.allSettled([
    raiseLevel(store),
    enterBuild(store, 'host-b', build('1.4.0', 1, 1)),
  ])
  const gone = back.status === 'fulfilled'
  expect(raised).toMatchObject({ status: 'fulfilled', value: gone ? undefined : 2 })
  if (gone) await enterBuild(store, 'host-b', build('1.5.0', 1, 2))
  expect((await raiseLevel(store)) ?? 2).toBe(2)
  expect(await level()).toBe(2)
  await expect(enterBuild(store, 'host-b', build('1.4.0', 1, 1))).rejects.toMatchObject({
    fault: { detail: expect.stringContaining('of level 2') },
  })
})
