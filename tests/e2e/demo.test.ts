/** The demo as a user runs it, under another name: three images built, three servers served, real clients, nothing left. */
import { spawn, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { chmodSync, copyFileSync, existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { ROOT, until } from '../kit/daemon.ts'

const instance = `d${randomBytes(3).toString('hex')}`
const data = `/var/lib/wadah-${instance}`
const socket = `/run/wadah-${instance}/wadahd.sock`
const env = { ...process.env, WADAH_DEMO_INSTANCE: instance, WADAH_SOCKET: socket, WADAH_LANG: 'en' }
const wadah = (...argv: string[]) =>
  spawnSync(join(ROOT, 'bin/wadah'), argv, { env, encoding: 'utf8', timeout: 580_000 })

afterAll(() => {
  wadah('demo', 'down')
  rmSync(`/var/cache/wadah-${instance}`, { recursive: true, force: true })
})

describe('the demo', () => {
  test('goes up from nothing, and is there the second time', { timeout: 600_000 }, () => {
    const up = wadah('demo', 'up')
    expect(up.stderr + up.stdout).toContain('ketoprak')
    expect(up.status).toBe(0)
    expect(wadah('demo', 'up').status).toBe(0)
    const { servers } = JSON.parse(wadah('demo', 'status', '--json').stdout) as {
      servers: {
        name: string
        service: string
        endpoint: string
        credentials: unknown
        accelerator: string
        ready_ms: number
        check: { ok: boolean }
      }[]
    }
    expect(servers.map((s) => [s.name, s.service, s.check.ok])).toEqual([
      ['batagor', 'smb', true],
      ['mieayam', 'ipp', true],
      ['ketoprak', 'http', true],
    ])
    for (const s of servers)
      expect([s.ready_ms > 0, /^(smb|ipp|http):\/\/127\.0\.0\.1:\d+\//.test(s.endpoint)]).toEqual([true, true])
  })

  test('its disks boot by UEFI, too', { timeout: 300_000 }, async () => {
    const volumes = `${data}/pools/default/wadah/volumes`
    const list = spawnSync(join(ROOT, 'bin/wadah'), ['image', 'show', 'web-server', '--json'], {
      env,
      encoding: 'utf8',
    })
    const disk = join(volumes, `${(JSON.parse(list.stdout) as { volume: string }).volume}.qcow2`)
    expect(existsSync(disk), readdirSync(volumes).join()).toBe(true)
    const dir = mkdtempSync(join(tmpdir(), 'wadah-uefi-'))
    copyFileSync('/usr/share/OVMF/OVMF_VARS_4M.fd', join(dir, 'vars.fd'))
    const flash = (file: string, more: string) => ['-drive', `if=pflash,format=raw,file=${file}${more}`]
    const qemu = spawn(
      'qemu-system-x86_64',
      [
        ...[
          '-M',
          'q35',
          '-accel',
          'tcg',
          '-m',
          '512',
          '-nodefaults',
          '-no-user-config',
          '-display',
          'none',
          '-serial',
          'stdio',
        ],
        ...flash('/usr/share/OVMF/OVMF_CODE_4M.fd', ',readonly=on'),
        ...flash(join(dir, 'vars.fd'), ''),
        ...['-drive', `file=${disk},format=qcow2,if=virtio,snapshot=on`, '-device', 'virtio-rng-pci'],
      ],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    )
    try {
      let said = ''
      qemu.stdout.on('data', (chunk) => (said += chunk))
      await until('the login prompt', () => / login: /.test(said), 240_000)
      expect(said).toContain('Debian GNU/Linux 12')
    } finally {
      qemu.kill('SIGKILL')
      rmSync(dir, { recursive: true, force: true })
    }
  })

  test('another kernel in a guest: it boots that one, and serves', { timeout: 600_000 }, async () => {
    const inside = (...argv: string[]) => wadah('vm', 'exec', 'ketoprak', '--timeout', '9m', '--', ...argv)
    const running = inside('uname', '-r').stdout.trim()
    // The newest of this distribution's that is not the one that runs.
    const names = spawnSync('apt-cache', ['search', '--names-only', '^linux-image-6[-+.0-9a-z]*-cloud-amd64$'], {
      encoding: 'utf8',
    })
    const others = names.stdout
      .split('\n')
      .flatMap((line) => /^linux-image-(\d+\.\d+\.\d+\S+)/.exec(line)?.[1] ?? [])
      .filter((version) => version !== running)
      .sort((a, b) => b.localeCompare(a, 'en', { numeric: true }))
    const other = others[0] as string
    const dir = mkdtempSync(join(tmpdir(), 'wadah-kernel-'))
    try {
      chmodSync(dir, 0o755)
      const fetched = spawnSync('apt-get', ['-q', 'download', `linux-image-${other}`], { cwd: dir, encoding: 'utf8' })
      expect(fetched.status, fetched.stderr).toBe(0)
      const file = readdirSync(dir)[0] as string
      expect(wadah('vm', 'cp', join(dir, file), 'ketoprak:/tmp/kernel.deb').status).toBe(0)
    } finally {
      rmSync(dir, { recursive: true, force: true })
    }
    const installed = inside('dpkg', '-i', '/tmp/kernel.deb')
    expect(installed.status, installed.stdout + installed.stderr).toBe(0)
    // Of two kernels the higher version boots. Where the distribution has none above ours, ours has to go.
    if (other.localeCompare(running, 'en', { numeric: true }) < 0) {
      const removed = inside(
        ...['env', 'DEBIAN_FRONTEND=noninteractive'],
        ...['dpkg', '--purge', 'linux-image-cloud-amd64', `linux-image-${running}`],
      )
      expect(removed.status, removed.stdout + removed.stderr).toBe(0)
    }
    const before = inside('cat', '/proc/sys/kernel/random/boot_id').stdout
    expect(wadah('vm', 'shutdown', 'ketoprak').status).toBe(0)
    expect(wadah('vm', 'start', 'ketoprak').status).toBe(0)
    await until(
      'the other kernel',
      () => {
        const { stdout } = inside('cat', '/proc/sys/kernel/random/boot_id')
        return stdout !== '' && stdout !== before
      },
      240_000,
    )
    expect(inside('uname', '-r').stdout.trim()).toBe(other)
    await until('its service', () => wadah('vm', 'check', 'ketoprak').status === 0, 120_000)
  })

  test('goes down and leaves nothing', { timeout: 300_000 }, () => {
    expect(wadah('demo', 'down').status).toBe(0)
    expect([existsSync(data), existsSync(`/run/wadah-${instance}`)]).toEqual([false, false])
    const seen = spawnSync('ps', ['-eo', 'args='], { encoding: 'utf8' }).stdout
    expect(seen.includes(data)).toBe(false)
    expect(spawnSync('nft', ['list', 'tables'], { encoding: 'utf8' }).stdout.includes(instance)).toBe(false)
  })
})
