/** Rules as records: whom they are for, what is broken of them, and that placements and plans go by them. */
import { CachedView } from '@wadah/store/cache'
import { type Write, put } from '@wadah/store/store'
import { openMemoryStore } from '@wadah/store/testing/memory'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { type Deps, commit } from '../src/context.ts'
import { aliveKind, factsKind } from '../src/members/records.ts'
import { hostFor, snapshotOf } from '../src/members/scheduling.ts'
import { hostKind, indexKeys, indexKind, placementKind, type RuleRecord, vmKind } from '../src/records.ts'
import { brokenOf, membersOf } from '../src/rules/members.ts'
import { Rules } from '../src/rules/service.ts'
import { HOST, caller, fakeDeps, ground } from './kit/cluster.ts'
import { FakeWorld } from './kit/fake-machine.ts'

const B = 'host-bbbbbbbbbb'
const named = { schema: 1 as const, project: 'default', created_at: '2026-01-01T00:00:00.000Z' }
const vm = (name: string, host: string, labels: Record<string, string> = {}): Write[] => {
  const id = `vm-${name.padEnd(10, 'a')}`
  return [
    put(vmKind, id, { ...named, id, name, labels, spec: { disks: [], nics: [], memory_mib: 64, cpus: 1 } } as never),
    put(placementKind, id, { schema: 1, host, epoch: 1 }),
    put(indexKind, indexKeys.name('vm', 'default', name), { schema: 1, holder: id }),
  ]
}

let view: CachedView
let deps: Deps
let rules: Rules
const write = (...writes: Write[]) => commit(deps, [], writes)
beforeEach(async () => {
  const store = openMemoryStore()
  const facts = {
    memory_mib: 4096,
    cpus: 4,
    pools: [],
    networks: [],
    cpu_flags: [],
    qemu_version: '7.2',
    accelerator: 'tcg',
  }
  await store.txn(
    [],
    [
      ...ground(),
      put(hostKind, B, { schema: 1, id: B, name: 'there', created_at: '' }),
      ...[HOST, B].flatMap((id) => [
        put(aliveKind, id, { schema: 1, host: id, since_ms: 0 }),
        put(factsKind, id, facts as never),
      ]),
    ],
    'made',
  )
  view = await CachedView.open(store, {})
  deps = fakeDeps(store, view, new FakeWorld())
  rules = new Rules(deps)
})
afterEach(async () => {
  await view.close()
})
const place = (body: { name: string; labels?: Record<string, string> }) =>
  hostFor(view, 'default', body as never, { now_ms: 0, memory_overcommit: 1, own: HOST })

describe('a rule', () => {
  test('is for VMs by labels and by name; it tells who stands against it, and is found by its name', async () => {
    await write(...vm('w1', HOST, { role: 'web' }), ...vm('w2', HOST, { role: 'web' }), ...vm('db', B))
    const made = await rules.create(caller, { name: 'spread', kind: 'apart', selector: 'role=web', vms: ['db'] })
    expect(made).toMatchObject({ kind: 'apart', strict: false, generation: 1 })
    expect(made.vms.map((v) => v.name).toSorted()).toEqual(['db', 'w1', 'w2'])
    expect(made.named.map((v) => v.name)).toEqual(['db'])
    expect(made.broken.map((v) => v.name)).toEqual(['w1', 'w2'])
    expect(rules.get(caller, 'spread').id).toBe(made.id)
    expect(rules.list(caller, {}).items).toHaveLength(1)
    await expect(rules.create(caller, { name: 'spread', kind: 'apart', vms: ['db'] })).rejects.toMatchObject({
      fault: { code: 'name_taken' },
    })
    await rules.delete(caller, 'spread', 1)
    expect(rules.list(caller, {}).items).toEqual([])
    // Its name is free again.
    await rules.create(caller, { name: 'spread', kind: 'on', vms: ['db'], hosts: ['there'] })
  })

  test.each([
    ['for nobody', { kind: 'apart' }, 'invalid', '/selector'],
    ['a selector that is none', { kind: 'apart', selector: '=' }, 'invalid', '/selector'],
    ['a VM that is not there', { kind: 'apart', vms: ['x'] }, 'not_found', '/vms/0'],
    ['on, without hosts', { kind: 'on', selector: 'a=b' }, 'invalid', '/hosts'],
    ['apart, with hosts', { kind: 'apart', selector: 'a=b', hosts: ['there'] }, 'invalid', '/hosts'],
    ['a host that is not there', { kind: 'not-on', selector: 'a=b', hosts: ['x'] }, 'not_found', '/hosts/0'],
  ] as const)('%s: refused', async (_, body, code, field) => {
    await expect(rules.create(caller, { name: 'r', ...body } as never)).rejects.toMatchObject({
      fault: { code, field },
    })
    expect(rules.list(caller, {}).items).toEqual([])
  })

  const cases: [RuleRecord['kind'], string[], string[]][] = [
    ['apart', [], ['w1', 'w2']],
    ['together', [], ['w3']],
    ['on', [B], ['w1', 'w2']],
    ['not-on', [B], ['w3']],
  ]
  test.each(cases)('%s: who stands against it', async (kind, hosts, expected) => {
    await write(...vm('w1', HOST), ...vm('w2', HOST), ...vm('w3', B))
    const all = view.list(vmKind).map((v) => v.value)
    const rule: RuleRecord = { ...named, id: 'rule-a', name: 'r', kind, strict: true, vms: all.map((v) => v.id), hosts }
    const members = membersOf(rule, [
      ...all,
      { ...(all[0] as never as object), id: 'vm-other', project: 'else' } as never,
    ])
    expect(members).toHaveLength(3)
    expect(
      brokenOf(view, rule, members)
        .map((v) => v.name)
        .toSorted(),
    ).toEqual(expected)
  })
})

describe('a placement', () => {
  test('of a VM that is not there yet goes by its labels', async () => {
    await write(...vm('w1', HOST, { role: 'web' }))
    await rules.create(caller, { name: 'spread', kind: 'apart', selector: 'role=web', strict: true })
    expect(place({ name: 'w2', labels: { role: 'web' } })).toBe(B)
    await write(...vm('w2', B, { role: 'web' }))
    expect(() => place({ name: 'w3', labels: { role: 'web' } })).toThrow(/strict rule spread/)
    expect([HOST, B]).toContain(place({ name: 'other' }))
  })

  test('one that is not strict is broken where it must be', async () => {
    await rules.create(caller, { name: 'licence', kind: 'on', selector: 'lic=yes', hosts: ['there'] })
    expect(place({ name: 'a', labels: { lic: 'yes' } })).toBe(B)
    await write(put(hostKind, B, { schema: 1, id: B, name: 'there', created_at: '', maintenance: true }))
    expect(place({ name: 'a', labels: { lic: 'yes' } })).toBe(HOST)
  })

  test('what a plan is shown are the VMs of that moment', async () => {
    await write(...vm('w1', HOST, { role: 'web' }))
    await rules.create(caller, { name: 'off', kind: 'not-on', selector: 'role=web', hosts: ['there'], strict: true })
    const shown = snapshotOf(view, { now_ms: 0, memory_overcommit: 1 }).rules
    expect(shown).toMatchObject([
      { name: 'off', kind: 'not_on', strict: true, vms: { ids: ['vm-w1aaaaaaaa'] }, hosts: { ids: [B] } },
    ])
  })
})
