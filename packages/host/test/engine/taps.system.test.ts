/** What a daemon that died in the middle of a start has left: taps that no record names. */
import { expect, test } from 'vitest'
import type { NetworkDefinition, Networks } from '@wadah/ports/networks'
import { machineKit, noNetworks } from './kit.ts'

const nat: NetworkDefinition = {
  id: 'net-aaaaaaaaaa',
  name: 'default',
  kind: 'nat',
  subnet: '10.77.1.0/24',
  gateway: '10.77.1.1',
  bridge: 'wbr-aaaaaaaaaa',
  domain: 'wadah.internal',
}

test('taps of a start that was cut off before it was written down go with the VM, those of others stay', async () => {
  const taps = new Set<string>()
  const networks: Networks = {
    ...noNetworks,
    attach: async (_network, { vm, nic }) => {
      taps.add(`${vm} ${nic}`)
      return { ifname: 'w' }
    },
    detach: async (vm, nic) => void taps.delete(`${vm} ${nic}`),
    taps: async () =>
      [...taps].map((tap) => ({ ifname: 'w', vm: tap.split(' ')[0] ?? '', nic: tap.split(' ')[1] ?? '' })),
  }
  const kit = await machineKit(networks)
  const second = await kit.open()
  try {
    const request = kit.request()
    const nic = { name: 'net1', network: nat.id, mac: '52:54:00:00:00:01', publish: [], limits: {} }
    const attachment = { ...nic, vm: request.vm, vm_name: 'tiny', nic: 'net1', uid: request.spec.uid }
    taps.add('vm-otherother net1')
    // Attached, and nothing of it written: the daemon ends here.
    await kit.machine.plan({ ...request, nics: [{ name: 'net1', network: nat, attachment }] })
    expect(taps.size).toBe(2)
    await second.clean(request.vm)
    expect([...taps]).toEqual(['vm-otherother net1'])
  } finally {
    await kit.close([kit.machine, second])
  }
})
