import { expect, test } from 'vitest'
import { lossOf, placedAfterLoss } from '../../src/members/lost.ts'

type Rows = Record<string, Record<string, object>>
const view = (rows: Rows) => ({
  get: (kind: { name: string }, id: string) => {
    const value = rows[kind.name]?.[id]
    return value && { id, value }
  },
  list: (kind: { name: string }) => Object.entries(rows[kind.name] ?? {}).map(([id, value]) => ({ id, value })),
})
const volume = (id: string, pool: string, more: object = {}) => [id, { id, name: id, pool, ...more }] as const
const vm = (id: string, ...volumes: string[]) =>
  [id, { id, name: id, spec: { disks: volumes.map((v, i) => ({ name: `d${i}`, volume: v })) } }] as const

test('what a lost host had: VMs whose disks others reach are free, what lay on it only is gone', () => {
  const found = lossOf(
    view({
      pool: { local: { host: 'lost' }, shared: { host: 'lost', shared: true }, other: { host: 'kept' } },
      volume: Object.fromEntries([
        volume('a', 'shared'),
        volume('b', 'local'),
        volume('base', 'local', { image: 'img-disk' }),
        volume('on-base', 'shared', { base: 'base' }),
        volume('c', 'other'),
        volume('spare', 'local'),
      ]),
      'vm/spec': Object.fromEntries([
        vm('diskless'),
        vm('shared', 'a'),
        vm('local', 'a', 'b'),
        vm('stands-on-it', 'on-base'),
        vm('elsewhere', 'c'),
        vm('torn', 'nowhere'),
      ]),
      'vm/placement': Object.fromEntries(
        ['diskless', 'shared', 'local', 'stands-on-it', 'torn']
          .map((id) => [id, { host: 'lost', epoch: 1 }])
          .concat([['elsewhere', { host: 'kept', epoch: 1 }]]),
      ),
      image: {
        'img-disk': { id: 'img-disk', name: 'debian', volume: 'base' },
        'img-kernel': { id: 'img-kernel', name: 'tiny', host: 'lost' },
        'img-other': { id: 'img-other', name: 'iso', host: 'kept' },
      },
    }) as never,
    'lost',
  )
  const names = (list: { name: string }[]) => list.map((x) => x.name).toSorted()
  expect(names(found.free)).toEqual(['diskless', 'shared'])
  // A disk whose chain is broken can't be said to be reached.
  expect(names(found.gone)).toEqual(['local', 'stands-on-it', 'torn'])
  expect(names(found.volumes)).toEqual(['b', 'base', 'on-base', 'spare'])
  expect(names(found.images)).toEqual(['debian', 'tiny'])
})

test('what lies beside the disks of a VM that can be started elsewhere is lost too, also of one that was on its way', () => {
  const keeps = (id: string, spec: object) => [id, { id, name: id, spec: { disks: [], ...spec } }] as const
  const uefi = { firmware: { kind: 'uefi' } }
  const found = lossOf(
    view({
      'vm/spec': Object.fromEntries([
        keeps('plain', {}),
        keeps('tpm', { tpm: true }),
        keeps('uefi', uefi),
        keeps('by-a-snapshot', {}),
        keeps('on-its-way', uefi),
      ]),
      snapshot: { s: { id: 's', vm: 'by-a-snapshot', spec: uefi } },
      'vm/placement': Object.fromEntries([
        ...['plain', 'tpm', 'uefi', 'by-a-snapshot'].map((id) => [id, { host: 'lost', epoch: 1 }]),
        ['on-its-way', { host: 'lost', epoch: 1, handover: { sealed: true } }],
      ]),
    }) as never,
    'lost',
  )
  expect(found.free).toHaveLength(5)
  expect(found.bare.map((vm) => vm.name).toSorted()).toEqual(['by-a-snapshot', 'on-its-way', 'tpm', 'uefi'])
})

test('a VM that was on its way, sealed, is where it went: a QEMU of it may live there; any other is here', () => {
  const placed = { schema: 1 as const, host: 'lost', epoch: 4 }
  const handover = { to: 'target', epoch: 5, job: 'job-a', sealed: true }
  const is = (before: typeof placed & { handover?: typeof handover }) =>
    placedAfterLoss(before, 'here', (id) => id === 'target')
  expect(is({ ...placed, handover })).toEqual({ schema: 1, host: 'target', epoch: 5 })
  expect(is({ ...placed, handover: { ...handover, sealed: false } })).toEqual({ schema: 1, host: 'here', epoch: 5 })
  expect(is({ ...placed, handover: { ...handover, to: 'removed' } })).toEqual({ schema: 1, host: 'here', epoch: 5 })
  expect(is(placed)).toEqual({ schema: 1, host: 'here', epoch: 5 })
})
