/** Declared servers, bulk actions, the host's check, its guests' end, and the store put back: the CLI against a real daemon. */
import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  symlinkSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { endpoints } from '@wadah/api/endpoints/all'
import type { HostCheck } from '@wadah/api/schema/host'
import { Daemon, purgeDead, ROOT, until } from '../kit/daemon.ts'

let d: Daemon
let dir: string
beforeAll(async () => {
  purgeDead()
  d = new Daemon()
  dir = mkdtempSync(join(tmpdir(), 'wadah-life-'))
  await d.start()
})
afterAll(async () => {
  await d.purge()
  rmSync(dir, { recursive: true, force: true })
})

const wadah = (...argv: string[]) => d.cli(argv)
const file = (text: string) => {
  const path = join(dir, 'set.yaml')
  writeFileSync(path, text)
  return path
}
const state = async (name: string) => (await d.vm(name)).status.state

describe('a file of servers', () => {
  test('the example: shown first, then made; a second run has nothing to do', async () => {
    const example = join(ROOT, 'examples/tiny.yaml')
    const shown = wadah('apply', '-f', example, '--dry-run')
    expect([shown.code, shown.stdout.match(/^[+~>-] .*/gm)]).toEqual([
      0,
      ['+ image tiny', '+ vm tiny-one, started', '+ vm tiny-two'],
    ])
    expect((await d.api.call(endpoints.vms.list)).items).toEqual([])
    const made = wadah('apply', '-f', example)
    expect([made.code, made.stdout]).toEqual([0, 'image tiny was made\nvm tiny-one was made\nvm tiny-two was made\n'])
    expect([await state('tiny-one'), await state('tiny-two')]).toEqual(['running', 'stopped'])
    expect(wadah('apply', '-f', example).stderr).toContain('Nothing to do')
  })
  test('what is exported is what was applied', () => {
    const exported = wadah('vm', 'export', '--selector', 'role=test')
    expect(exported.code).toBe(0)
    expect(wadah('apply', '-f', file(exported.stdout), '--set', 'tiny').stderr).toContain('Nothing to do')
  })
  test('changes: at once, at the next start, with a restart', async () => {
    await d.booted('tiny-one')
    const one = (more: string) =>
      file(`- {kind: vm, name: tiny-one, state: running${more}}\n- {kind: vm, name: tiny-two}\n`)
    const wait = wadah(
      'apply',
      '-f',
      one(', memory: 112M, disks: [{name: data, size: 8M}], description: x'),
      '--set',
      'tiny',
    )
    expect([wait.code, wait.stderr]).toEqual([0, expect.stringContaining('at its next start takes hold: memory_mib')])
    const grown = wadah('apply', '-f', one(', disks: [{name: data, size: 16M}]'), '--set', 'tiny', '--restart')
    expect([grown.code, grown.stdout]).toEqual([0, 'vm tiny-one was changed\n'])
    const vm = await d.vm('tiny-one')
    expect(vm).toMatchObject({ wanted: 'running', description: 'x', status: { state: 'running', pending_restart: [] } })
    const { items } = await d.api.call(endpoints.volumes.list, { query: { vm: vm.id } })
    expect(items.map((v) => v.size_bytes)).toEqual([16 * 2 ** 20])
  })
  test('mistakes are named by line, and nothing is done', async () => {
    const typo = wadah('apply', '-f', file('kind: vm\nname: other\nmemroy: 1G\n'))
    expect([typo.code, typo.stderr]).toEqual([
      2,
      expect.stringContaining('set.yaml:3:1: /memroy: there is no field "memroy"; did you mean "memory"?'),
    ])
    const nowhere = wadah('apply', '-f', file('kind: vm\nname: other\nimage: nosuch\n'))
    expect([nowhere.code, nowhere.stderr]).toEqual([
      4,
      expect.stringContaining('set.yaml:3:1: vm other: /image: there is no image "nosuch"'),
    ])
    expect((await d.raw('GET', '/v1/vms/other')).status).toBe(404)
  })
  test('what is no more in it goes only when asked, and not unasked', async () => {
    const path = file('kind: vm\nname: tiny-one\n')
    expect(wadah('apply', '-f', path, '--set', 'tiny').stderr).toContain('Nothing to do')
    expect(wadah('apply', '-f', path, '--set', 'tiny', '--prune').code).toBe(2)
    expect(await state('tiny-two')).toBe('stopped')
    expect(wadah('apply', '-f', path, '--set', 'tiny', '--prune', '--yes').stdout).toBe('vm tiny-two was deleted\n')
    expect((await d.raw('GET', '/v1/vms/tiny-two')).status).toBe(404)
  })
})

describe('several at once', () => {
  test('by a selector; a protected one is left, and that is the exit code', async () => {
    for (const name of ['a', 'b']) await d.create({ name, labels: { team: 'x' } })
    await d.create({ name: 'c', labels: { team: 'x' }, protected: true })
    const started = wadah('vm', 'start', '--selector', 'team=x')
    expect([started.code, started.stdout.split('\n').sort().filter(Boolean)]).toEqual([
      0,
      ['a runs', 'b runs', 'c runs'],
    ])
    expect(wadah('vm', 'stop', '--selector', 'team=x').code).toBe(2)
    expect(wadah('vm', 'stop', '--selector', 'team=x', '--yes').code).toBe(0)
    const deleted = wadah('vm', 'delete', '--selector', 'team=x', '--yes')
    expect([deleted.code, deleted.stderr]).toEqual([4, expect.stringContaining('c: it is protected')])
    expect((await d.api.call(endpoints.vms.list, { query: { selector: 'team' } })).items.map((v) => v.name)).toEqual([
      'c',
    ])
    expect(wadah('vm', 'edit', 'c', '--unprotect').code).toBe(0)
    expect(wadah('vm', 'delete', 'c').code).toBe(0)
  })
})

describe('the host', () => {
  test('says what it has, lacks, and how to get it', () => {
    const checked = wadah('host', 'check', '--json')
    const found = JSON.parse(checked.stdout) as HostCheck
    expect(checked.code).toBe(found.ok ? 0 : 9)
    const of = (name: string) => found.items.find((i) => i.name === name)
    expect([of('qemu')?.state, of('qemu-img')?.state, of('pool default')]).toMatchObject([
      'ok',
      'ok',
      { name: 'pool default' },
    ])
    for (const item of found.items) if (item.state !== 'ok') expect(item.remedy, item.name).toBeTruthy()
    expect(found.outdated).toEqual([])
  })
  test('names VMs whose QEMU is not the installed one any more', async () => {
    // As after an upgrade: another file under the same name. A copy of QEMU of our own, so that nobody else sees it.
    // It looks for its modules and firmware beside its own folder; and it is run by the VM's own user.
    const own = join(dir, 'bin/qemu-system-x86_64')
    chmodSync(dir, 0o755)
    mkdirSync(join(dir, 'bin'))
    for (const name of ['lib', 'share']) symlinkSync(`/usr/${name}`, join(dir, name))
    const copy = () =>
      expect(spawnSync('cp', ['--remove-destination', '/usr/bin/qemu-system-x86_64', own]).status).toBe(0)
    copy()
    const other = new Daemon(`qemu = ${JSON.stringify(own)}`)
    try {
      await other.start()
      const vm = await other.create({ name: 'old', image: undefined, disk_mib: 1, start: true })
      const outdated = async () => (await other.api.call(endpoints.system.check)).outdated
      expect(await outdated()).toEqual([])
      copy()
      expect(await outdated()).toMatchObject([
        { vm: vm.id, name: 'old', running: expect.stringContaining('before the upgrade') },
      ])
    } finally {
      await other.purge()
    }
  })
})

describe('the store', () => {
  test('copied while it works and put back: what runs is adopted, what the copy does not know is said, nothing starts', async () => {
    const copy = join(dir, 'copy.db')
    const before = await d.vm('tiny-one')
    await d.api.call(endpoints.vms.edit, { params: { vm: 'tiny-one' }, body: { autostart: { enabled: true } } })
    await d.create({ name: 'auto', autostart: { enabled: true } })
    const saved = wadah('store', 'backup', copy)
    expect([saved.code, (statSync(copy).mode & 0o777).toString(8)]).toEqual([0, '600'])
    const { id: later } = await d.create({ name: 'later', start: true })
    await d.api.call(endpoints.vms.edit, { params: { vm: 'tiny-one' }, body: { description: 'after the copy' } })
    const restore = () => d.daemon(['--restore', copy])
    expect(restore()).toMatchObject({ code: 1, stderr: expect.stringContaining('only while none runs') })
    const events = await d.api.stream(endpoints.system.events)
    let cursor = ''
    for await (const part of events) {
      cursor = /^id: (.+)$/m.exec(Buffer.from(part).toString())?.[1] ?? ''
      if (cursor !== '') break
    }
    await d.kill('SIGTERM')
    const restored = restore()
    expect(restored.code).toBe(0)
    const { kept } = JSON.parse(restored.stdout) as { kept: string }
    expect(readdirSync(d.data)).toContain(kept.split('/').at(-1))
    await d.start()
    const vm = await d.vm('tiny-one')
    expect([vm.status.pid, vm.status.state, vm.description]).toEqual([before.status.pid, 'running', 'x'])
    expect(await state('auto')).toBe('stopped')
    const check = await d.api.call(endpoints.system.check)
    expect(check.items.find((i) => i.name === `folder ${later}`)).toMatchObject({
      state: 'warn',
      detail: expect.stringContaining('its QEMU runs'),
    })
    expect(d.traces().qemus.length).toBe(2)
    // Whoever followed the old store is told to begin again.
    const again = await d.send({
      method: 'GET',
      path: '/v1/events',
      headers: { host: 'localhost', 'last-event-id': cursor },
    })
    for await (const part of again.body) {
      expect(Buffer.from(part).toString()).toMatch(/event: reset/)
      break
    }
  })
  test('and who took the copy is on record', () => {
    expect(readFileSync(join(d.data, 'audit.log'), 'utf8')).toContain('/v1/store/backup')
  })
})

describe('the end of the host', () => {
  test('guests shut down by the power button and stay wanted', async () => {
    await d.booted('tiny-one')
    const ended = wadah('host', 'stop-guests', '--yes', '--grace', '60')
    expect([ended.code, ended.stdout]).toEqual([0, 'Guests that were shut down: 1\n'])
    const vm = await until('the state', async () => {
      const now = await d.vm('tiny-one')
      return now.status.state === 'stopped' && now
    })
    expect([vm.wanted, vm.status.reason]).toEqual(['running', 'it was shut down with the host'])
    // A new daemon on a host that has not been started anew starts nothing.
    await d.kill('SIGTERM')
    await d.start()
    expect(await state('tiny-one')).toBe('stopped')
  })
})
