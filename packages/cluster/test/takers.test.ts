/** One volume, two who want it at the same moment: whoever writes it has it alone. */
import { describe, expect, test } from 'vitest'
import { WadahError } from '@wadah/api/fault'
import { caller, room } from './kit/cluster.ts'

type Room = Awaited<ReturnType<typeof room>>
const signal = new AbortController().signal

/** Each ends once its job has. */
const takers: Record<string, { reads?: true; take: (r: Room) => Promise<unknown> }> = {
  'a disk of one': { take: (r) => r.vms.edit(caller, 'one', { add_disks: [{ volume: 'v' }] }, undefined) },
  'a disk of two, after a new one': {
    take: (r) => r.vms.edit(caller, 'two', { add_disks: [{ size_mib: 5 }, { volume: 'v' }] }, undefined),
  },
  'a disk of a new VM': {
    take: (r) => r.done(r.vms.create(caller, { name: 'three', disks: [{ volume: 'v' }], nics: [] })),
  },
  'a move': { take: (r) => r.done(r.transfers.changeVolume(caller, 'v', { format: 'raw' })) },
  'more room': { take: (r) => r.done(r.storage.resizeVolume(caller, 'v', { size_mib: 16 })) },
  'its end': { take: (r) => r.done(r.storage.deleteVolume(caller, 'v', undefined)) },
  'a linked clone': {
    reads: true,
    take: (r) => r.done(r.storage.cloneVolume(caller, 'v', { name: 'w', clone: 'linked' })),
  },
  'a full clone': {
    reads: true,
    take: (r) => r.done(r.storage.cloneVolume(caller, 'v', { name: 'f', clone: 'full' })),
  },
  'a download': {
    reads: true,
    take: async (r) => {
      for await (const _ of r.transfers.downloadVolume(caller, 'v', 'raw', signal));
    },
  },
}

/** What must hold whoever won. */
async function sound(r: Room): Promise<void> {
  const volumes = new Map(r.storage.listVolumes(caller, {}).items.map((v) => [v.id, v]))
  const users = new Map<string, string>()
  for (const vm of (
    await Promise.all(
      ['one', 'two', 'three'].map(async (n) => r.vms.get(caller, n)).map((p) => p.catch(() => undefined)),
    )
  ).flatMap((v) => (v ? [v] : []))) {
    for (const { volume } of vm.spec.disks) {
      expect(users.get(volume), 'one VM only').toBeUndefined()
      users.set(volume, vm.id)
      expect(volumes.get(volume)?.vm, 'the record says so').toBe(vm.id)
      expect(
        [...volumes.values()].filter((v) => v.base === volume),
        'nobody stands on what is written',
      ).toEqual([])
    }
  }
  for (const v of volumes.values()) {
    expect(r.world.files.has(`${v.pool}/${v.id}.${v.format}`) || [...r.world.files].some((f) => f.includes(v.id))).toBe(
      true,
    )
    if (v.base !== undefined) expect(volumes.get(v.base)).toMatchObject({ format: 'qcow2', read_only: true })
  }
}

describe('two at the same moment', () => {
  const names = Object.keys(takers)
  const pairs = names.flatMap((a) => names.filter((b) => a !== b).map((b): [string, string] => [a, b]))
  test.each(pairs)('%s and %s', async (a, b) => {
    const r = await room()
    try {
      for (const name of ['one', 'two']) await r.done(r.vms.create(caller, { name, nics: [] }))
      await r.done(r.storage.createVolume(caller, { name: 'v', size_mib: 8 }))
      const ended = await Promise.allSettled([takers[a]?.take(r), takers[b]?.take(r)])
      for (const one of ended) if (one.status === 'rejected') expect(one.reason).toBeInstanceOf(WadahError)
      expect(ended.some((one) => one.status === 'fulfilled')).toBe(true)
      await sound(r)
    } finally {
      await r.close()
    }
  })
})
