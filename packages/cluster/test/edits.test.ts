/** Edits and names at their corners: what is refused changes nothing at all, and what is allowed is not refused. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { VmCreate, VmEdit } from '@wadah/api/schema/vm'
import { caller, room } from './kit/cluster.ts'

let r: Awaited<ReturnType<typeof room>>
beforeEach(async () => {
  r = await room()
})
afterEach(async () => {
  await r.close()
})

const create = (body: VmCreate) => r.done(r.vms.create(caller, body))
const edit = (name: string, body: VmEdit) => r.vms.edit(caller, name, body, undefined)
const volumes = () => r.storage.listVolumes(caller, {}).items

describe('an edit that is refused changes nothing', () => {
  const cases: [string, VmEdit, string, string][] = [
    ['more memory than the host has', { memory_mib: 9000 }, 'invalid', '/memory_mib'],
    ['less memory than the image needs', { memory_mib: 100 }, 'invalid', '/memory_mib'],
    ['a balloon larger than the memory', { balloon_mib: 4000 }, 'invalid', '/balloon_mib'],
    ['a command line for a disk image', { cmdline: 'quiet' }, 'invalid', '/cmdline'],
    ['a bad name', { name: 'A' }, 'invalid', '/name'],
    ['a disk it has not', { disks: [{ name: 'none', limits: {} }] }, 'invalid', '/disks/0/name'],
    ['to take a disk it has not', { remove_disks: ['none'] }, 'invalid', '/remove_disks/0'],
    ['a NIC it has not', { nics: [{ name: 'none' }] }, 'invalid', '/nics/0/name'],
    ['to take a NIC it has not', { remove_nics: ['none'] }, 'invalid', '/remove_nics/0'],
    ['an address outside', { nics: [{ name: 'net1', address: '10.9.9.9' }] }, 'invalid', '/nics/0/address'],
    [
      'one address for two NICs',
      { nics: ['net1', 'net2'].map((name) => ({ name, address: '10.1.0.99' })) },
      'address_taken',
      '/nics/1/address',
    ],
    [
      'bandwidth on a user network',
      { nics: [{ name: 'net3', limits: { in_bytes_per_s: 9999 } }] },
      'invalid',
      '/nics/0/limits',
    ],
    [
      'a port twice',
      {
        nics: [
          {
            name: 'net1',
            publish: [
              { port: 8080, to: 80 },
              { port: 8080, to: 81 },
            ],
          },
        ],
      },
      'port_taken',
      '/nics/0/publish/1/port',
    ],
    [
      'a port of another NIC',
      { nics: [{ name: 'net2', publish: [{ port: 8080, to: 80 }] }] },
      'port_taken',
      '/nics/0/publish/0/port',
    ],
    [
      'a port of another program',
      { nics: [{ name: 'net1', publish: [{ port: 999, to: 80 }] }] },
      'port_taken',
      '/nics/0/publish/0/port',
    ],
    ['an unknown network', { add_nics: [{ network: 'none' }] }, 'not_found', '/add_nics/0/network'],
    ['a disk of no size', { add_disks: [{}] }, 'invalid', '/add_disks/0'],
    ['a disk too large for the pool', { add_disks: [{ size_mib: 200 * 1024 }] }, 'no_room', '/add_disks/0/size_mib'],
    ['a disk from an unknown pool', { add_disks: [{ size_mib: 5, pool: 'none' }] }, 'not_found', '/add_disks/0/pool'],
    ['a name of a disk it has', { add_disks: [{ size_mib: 5, name: 'root' }] }, 'invalid', '/add_disks/0/name'],
    ['a disk it has, once more', { add_disks: [{ volume: 'one-root' }] }, 'in_use', '/add_disks/0/volume'],
    ['a free disk twice', { add_disks: [{ volume: 'free' }, { volume: 'free' }] }, 'in_use', '/add_disks/1/volume'],
    [
      'new disks beside something wrong',
      { add_disks: [{ size_mib: 5 }], remove_nics: ['none'] },
      'invalid',
      '/remove_nics/0',
    ],
    [
      'a NIC edited and taken away',
      { nics: [{ name: 'net1', publish: [] }], remove_nics: ['net1'] },
      'invalid',
      '/remove_nics/0',
    ],
  ]
  test.each(cases)('%s', async (_what, body, code, field) => {
    await r.done(r.storage.createVolume(caller, { name: 'free', size_mib: 5 }))
    await create({
      name: 'one',
      image: 'web',
      nics: [{ publish: [{ port: 8080, to: 80 }] }, {}, { network: 'user' }],
    })
    const [before, files, known] = [r.vms.get(caller, 'one'), r.world.snapshot(), volumes()]
    await expect(edit('one', body)).rejects.toMatchObject({ fault: { code, field, effect: 'none' } })
    expect(r.vms.get(caller, 'one')).toEqual(before)
    expect([r.world.snapshot(), volumes()]).toEqual([files, known])
  })
})

describe('an edit that is allowed', () => {
  test('moves a port from one address of the host to all of them, and back', async () => {
    await create({ name: 'one', nics: [{ publish: [{ address: '127.0.0.1', port: 8080, to: 80 }] }] })
    for (const address of ['0.0.0.0', '127.0.0.1']) {
      const { spec } = await edit('one', { nics: [{ name: 'net1', publish: [{ address, port: 8080, to: 80 }] }] })
      expect(spec.nics[0]?.publish).toEqual([{ protocol: 'tcp', address, port: 8080, to: 80 }])
    }
    const same = await edit('one', { nics: [{ name: 'net1', publish: [{ port: 8080, to: 81 }] }] })
    expect(same.spec.nics[0]?.publish[0]?.to).toBe(81)
    await edit('one', { nics: [{ name: 'net1', publish: [] }] })
    await create({ name: 'two', nics: [{ publish: [{ port: 8080, to: 80 }] }] })
  })

  test('of everything that waits says so while it runs, and nothing of what is live', async () => {
    await create({ name: 'one', image: 'web', start: true })
    const live = await edit('one', {
      description: 'd',
      labels: { a: 'b' },
      name: 'uno',
      limits: { cpu_weight: 50 },
      balloon_mib: 256,
      nics: [{ name: 'net1', publish: [{ port: 8080, to: 80 }] }],
    })
    expect(live.status.pending_restart).toEqual([])
    expect(live).toMatchObject({ name: 'uno', description: 'd', labels: { a: 'b' } })
    expect(live.spec).toMatchObject({ balloon_mib: 256, limits: { cpu_weight: 50 } })
    const later = await edit('uno', { cpus: 2, memory_mib: 600, add_disks: [{ size_mib: 5 }], add_nics: [{}] })
    expect(later.status.pending_restart).toEqual(['cpus'])
    await r.done(r.vms.stop(caller, 'uno'))
    expect(r.vms.get(caller, 'uno').status.pending_restart).toEqual([])
  })

  test('a TPM comes at the next start, and is refused where there is none to be had', async () => {
    await create({ name: 'one', start: true })
    expect((await edit('one', { tpm: true })).status.pending_restart).toEqual(['tpm'])
    expect((await edit('one', { tpm: false })).status.pending_restart).toEqual([])
    r.world.tpm = false
    const lacks = { fault: { code: 'host_lacks', field: '/tpm', effect: 'none' } }
    await expect(edit('one', { tpm: true })).rejects.toMatchObject(lacks)
    await expect(create({ name: 'two', tpm: true })).rejects.toMatchObject(lacks)
  })

  test('puts NICs into a running VM and takes them out, and says which wait', async () => {
    await create({ name: 'one', start: true, nics: [{}] })
    const { id } = r.vms.get(caller, 'one')
    const taps = () => [...r.world.taps].map((t) => t.replace(`${id}/`, '')).sort()
    expect((await edit('one', { add_nics: [{}] })).status.pending_restart).toEqual([])
    expect(taps()).toEqual(['net1', 'net2'])
    r.world.clings = true
    await expect(edit('one', { remove_nics: ['net1'] })).rejects.toMatchObject({ fault: { code: 'busy' } })
    expect(r.vms.get(caller, 'one').spec.nics.map((n) => n.name)).toEqual(['net1', 'net2'])
    r.world.clings = false
    expect((await edit('one', { remove_nics: ['net1'] })).status.pending_restart).toEqual([])
    expect(taps()).toEqual(['net2'])
    r.world.nicPorts = 1
    expect((await edit('one', { add_nics: [{}] })).status.pending_restart).toEqual(['nics'])
    expect((await edit('one', { remove_nics: ['net1'] })).status.pending_restart).toEqual([])
  })

  test('gives a running VM more RAM, as far as there is; less is for the next start', async () => {
    await create({ name: 'one', start: true, memory_mib: 512 })
    await create({ name: 'two', start: true, memory_mib: 4096 })
    expect((await edit('one', { memory_mib: 1024 })).status.pending_restart).toEqual([])
    expect(r.world.memory.get(r.vms.get(caller, 'one').id)).toBe(1024)
    const more = edit('one', { memory_mib: 5000 })
    await expect(more).rejects.toMatchObject({ fault: { code: 'no_room', field: '/memory_mib', effect: 'none' } })
    expect((await edit('one', { memory_mib: 512 })).status.pending_restart).toEqual(['memory_mib'])
    r.world.mostMemory = 1024
    expect((await edit('one', { memory_mib: 2048 })).status.pending_restart).toEqual(['memory_mib'])
    expect((await edit('one', { memory_mib: 1024 })).status.pending_restart).toEqual([])
  })

  test('what was taken out for nothing is put in again', async () => {
    await create({ name: 'one', start: true, nics: [{}] })
    r.world.full = 0
    const body = { remove_nics: ['net1'], add_disks: [{ size_mib: 5 }] }
    await expect(edit('one', body)).rejects.toMatchObject({ fault: { code: 'no_room' } })
    expect([...r.world.taps].map((t) => t.split('/')[1])).toEqual(['net1'])
    expect(r.vms.get(caller, 'one').status.pending_restart).toEqual([])
  })

  test('gives back what it lets go: address, MAC, name', async () => {
    await create({ name: 'one', nics: [{ address: '10.1.0.50', mac: '52:54:00:00:00:50' }] })
    await edit('one', { nics: [{ name: 'net1', address: '10.1.0.51' }], name: 'uno' })
    await create({ name: 'one', nics: [{ address: '10.1.0.50' }] })
    await edit('uno', { remove_nics: ['net1'] })
    await create({ name: 'two', nics: [{ address: '10.1.0.51', mac: '52:54:00:00:00:50' }] })
  })

  test('less memory takes along a balloon that would not fit', async () => {
    await create({ name: 'one', memory_mib: 1024, balloon_mib: 900 })
    expect((await edit('one', { memory_mib: 512 })).spec.balloon_mib).toBeNull()
  })

  test('a pool is not promised twice to edits that come together', async () => {
    for (const name of ['a', 'b', 'c']) await create({ name, nics: [] })
    const all = await Promise.allSettled(
      ['a', 'b', 'c'].map((name) => edit(name, { add_disks: [{ size_mib: 40 * 1024 }] })),
    )
    expect(all.map((a) => a.status).sort()).toEqual(['fulfilled', 'fulfilled', 'rejected'])
    expect(volumes()).toHaveLength(3)
  })

  test('a second disk that cannot be made takes the first away again', async () => {
    await create({ name: 'one', nics: [] })
    r.world.full = 1
    await expect(edit('one', { add_disks: [{ size_mib: 5 }, { size_mib: 5 }] })).rejects.toMatchObject({
      fault: { code: 'no_room' },
    })
    expect(volumes()).toHaveLength(1)
    expect(r.world.files.size).toBe(1)
  })
})

describe('names of volumes', () => {
  const long = `a${'b'.repeat(62)}`
  test('stay apart and stay names, however long the VM is called', async () => {
    await create({ name: long, disk_mib: 5, disks: [{ size_mib: 5 }, { size_mib: 5 }], nics: [] })
    const other = `c${'d'.repeat(61)}`
    await create({ name: other, disk_mib: 5, disks: [{ size_mib: 5 }], nics: [] })
    await r.done(r.vms.clone(caller, long, { name: `e${'f'.repeat(62)}` }))
    const names = volumes().map((v) => v.name)
    expect(new Set(names).size).toBe(names.length)
    for (const name of names)
      expect((await r.storage.getVolume(caller, name)).name).toMatch(/^[a-z]([a-z0-9-]{0,61}[a-z0-9])$/)
  })
  test('a volume of the name is there already', async () => {
    await r.done(r.storage.createVolume(caller, { name: 'one-root', size_mib: 5 }))
    await create({ name: 'one', disk_mib: 5, nics: [] })
    await r.done(r.storage.createVolume(caller, { name: 'two-root', size_mib: 5 }))
    await r.done(r.vms.clone(caller, 'one', { name: 'two' }))
    expect(new Set(volumes().map((v) => v.name)).size).toBe(5)
  })
  test('one volume for two disks is refused', async () => {
    await r.done(r.storage.createVolume(caller, { name: 'free', size_mib: 5 }))
    await expect(
      r.vms.create(caller, { name: 'one', disks: [{ volume: 'free' }, { volume: 'free' }] }),
    ).rejects.toMatchObject({ fault: { code: 'in_use', field: '/disks/1/volume' } })
  })
})
