/** cloud-init itself, in an image that came from elsewhere, hears who it is from our seed disk. */
import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { endpoints } from '@wadah/api/endpoints/all'
import { Daemon, purgeDead, until } from '../kit/daemon.ts'

const { images } = endpoints
let d: Daemon
let dir: string

/** As a distribution's cloud image: what of ours would make users, keys and networks is off. */
const RECIPE = `name = "cloud"
title = "Cloud"
title_id = "Cloud"
description = "Debian with cloud-init."
description_id = "Debian dengan cloud-init."
base = "debian-12"
packages = ["cloud-init"]
min_memory_mib = 384
[service]
kind = "tcp"
port = 22
[check]
kind = "tcp"
port = 22
[units]
enable = ["cloud-init-local.service", "cloud-init.service", "cloud-config.service", "cloud-final.service"]
`
const AFTER = `#!/bin/sh
set -e
for unit in seed first-boot identity; do systemctl disable wadah-$unit.service; rm /etc/systemd/system/wadah-$unit.service; done
rm /etc/systemd/network/80-wadah.network
`
const USER_DATA = `#cloud-config
locale: false
write_files:
  - path: /etc/motto
    content: satu wadah
runcmd:
  - [sh, -c, 'id -un > /run/who; hostname > /run/name']
`

beforeAll(async () => {
  purgeDead()
  dir = mkdtempSync(join(tmpdir(), 'wadah-cloud-'))
  mkdirSync(join(dir, 'recipes/cloud'), { recursive: true })
  writeFileSync(join(dir, 'recipes/cloud/recipe.toml'), RECIPE)
  writeFileSync(join(dir, 'recipes/cloud/after-install'), AFTER, { mode: 0o755 })
  d = new Daemon(`recipe_dirs = [${JSON.stringify(join(dir, 'recipes'))}]`)
  await d.start()
  await d.done(await d.api.call(images.build, { body: { recipe: 'cloud' } }), 400_000)
}, 420_000)
afterAll(async () => {
  await d.purge()
  rmSync(dir, { recursive: true, force: true })
})

test('exported and imported: user, key, name, network and user-data are what was asked for, also after a restart', async () => {
  const file = join(dir, 'cloud.qcow2')
  expect(d.cli(['image', 'export', 'cloud', file])).toMatchObject({ code: 0 })
  expect(d.cli(['image', 'import', file, '--name', 'foreign'])).toMatchObject({ code: 0 })
  const key = join(dir, 'key')
  execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', key])
  writeFileSync(join(dir, 'user-data'), USER_DATA)
  const asked = 'vm create anna-web --image foreign --memory 512M --hostname kedai --seed-user anna --start'.split(' ')
  const made = d.cli([...asked, '--ssh-key', `${key}.pub`, '--user-data', join(dir, 'user-data')])
  expect(made).toMatchObject({ code: 0 })
  const address = (await d.vm('anna-web')).spec.nics[0]?.address ?? ''
  const ssh = (script: string) => {
    const options = ['IdentitiesOnly=yes', 'BatchMode=yes', 'StrictHostKeyChecking=no', 'ConnectTimeout=5'].concat(
      `UserKnownHostsFile=${dir}/known`,
    )
    const words = ['-F', 'none', ...options.flatMap((o) => ['-o', o]), '-i', key, `anna@${address}`, script]
    return execFileSync('ssh', words, {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
      timeout: 60_000,
    }).trim()
  }
  // Asked now and then: it takes the guest seconds to answer, which it has better things to do with.
  const done = () =>
    until(
      'cloud-init to be done',
      async () => {
        await new Promise((resolve) => setTimeout(resolve, 3_000))
        const said = await d.exec('anna-web', 'cloud-init', 'status', '--long').catch(() => undefined)
        if (said?.out.includes('status: error')) throw new Error(said.out)
        return said?.out.includes('status: done')
      },
      400_000,
    )
  await done()
  expect(ssh('hostname; id -un; sudo -n id -u').split('\n')).toEqual(['kedai', 'anna', '0'])
  expect(ssh('cat /etc/motto; echo; sudo cat /run/who /run/name').split('\n')).toEqual(['satu wadah', 'root', 'kedai'])
  const vm = await d.vm('anna-web')
  expect(ssh('cloud-init query subplatform; cloud-init query instance_id').split('\n')).toEqual([
    expect.stringContaining('config-disk'),
    vm.id,
  ])
  expect(ssh('cat /sys/class/net/e*/address')).toBe(vm.spec.nics[0]?.mac)
  expect(d.cli(['vm', 'shutdown', 'anna-web', '--grace', '100'])).toMatchObject({ code: 0 })
  expect(d.cli(['vm', 'start', 'anna-web'])).toMatchObject({ code: 0 })
  await done()
  // By the key that is known (ssh would refuse another), and nothing was done twice.
  expect(ssh('sudo cat /run/who 2>/dev/null; echo')).toBe('')
  expect(ssh('hostname; id -un').split('\n')).toEqual(['kedai', 'anna'])
}, 700_000)
