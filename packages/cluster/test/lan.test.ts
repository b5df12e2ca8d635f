/** Networks of kind `bridge`: what is asked for, what is refused, and NICs on them. */
import { afterEach, beforeEach, expect, test } from 'vitest'
import { CONFIG, caller, room } from './kit/cluster.ts'

let r: Awaited<ReturnType<typeof room>>
beforeEach(async () => {
  r = await room()
})
afterEach(async () => {
  await r.close()
})
const refused = (work: Promise<unknown>, fault: object) => expect(work).rejects.toMatchObject({ fault })

test('a bridge or a NIC, one of the two, and nothing of other kinds', async () => {
  const make = (over: object) => r.networks.create(caller, { name: 'lan', kind: 'bridge', ...over })
  await refused(make({}), { code: 'invalid', field: '/bridge' })
  await refused(make({ bridge: 'br0', nic: 'eth1' }), { code: 'invalid', field: '/nic' })
  await refused(make({ bridge: 'br0', subnet: '10.5.0.0/24' }), { field: '/subnet' })
  await refused(make({ nic: 'eth1', host_access: true }), { field: '/host_access' })
  await refused(make({ nic: 'eth0' }), { code: 'host_lacks', field: '/nic', remedy: 'another one', effect: 'none' })
  await refused(r.networks.create(caller, { name: 'n', kind: 'nat', vlan: 3 }), { field: '/vlan' })
  expect(await make({ nic: 'eth1', vlan: 20 })).toMatchObject({ kind: 'bridge', nic: 'eth1', vlan: 20, state: 'up' })
  await refused(make({ name: 'twice', nic: 'eth1', vlan: 20 }), { code: 'in_use', field: '/nic' })
  expect(await make({ name: 'office', bridge: 'br0' })).toMatchObject({ bridge: 'br0' })
})

test('a guest has the address that the LAN gives it, or the only one it may have; no port of the host leads to it', async () => {
  await r.networks.create(caller, { name: 'lan', kind: 'bridge', bridge: 'br0' })
  const nic = { network: 'lan' }
  await r.done(r.vms.create(caller, { name: 'free', nics: [nic], start: true }))
  expect(r.vms.get(caller, 'free')).toMatchObject({ addresses: [], status: { pending_restart: [] } })
  await r.done(r.vms.create(caller, { name: 'fixed', nics: [{ ...nic, address: '192.0.2.7' }] }))
  expect(r.networks.get(caller, 'lan').reservations).toMatchObject([{ vm_name: 'fixed', address: '192.0.2.7' }])
  const make = (over: object) => r.vms.create(caller, { name: 'no', nics: [{ ...nic, ...over }] })
  await refused(make({ address: '192.0.2.7' }), { code: 'address_taken' })
  await refused(make({ address: '127.0.0.1' }), { code: 'invalid', field: '/nics/0/address' })
  await refused(make({ publish: [{ port: 8080, to: 80 }] }), { code: 'invalid', field: '/nics/0/publish' })
  const publish = [{ port: 8080, to: 80, address: CONFIG.publish_address }]
  await refused(r.vms.edit(caller, 'free', { nics: [{ name: 'net1', publish }] }, undefined), {
    field: '/nics/0/publish',
  })
  await refused(r.networks.delete(caller, 'lan', undefined), { code: 'in_use' })
  await r.done(r.vms.clone(caller, 'fixed', { name: 'twin' }))
  expect(r.vms.get(caller, 'twin').addresses).toEqual([])
})
