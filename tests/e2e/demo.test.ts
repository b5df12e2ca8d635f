/** The demo as a user runs it, under another name: three hosts, three servers that move while real clients use them, nothing left. */
import { spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { chmodSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
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
    const { servers, hosts, moves, snapshot } = JSON.parse(wadah('demo', 'status', '--json').stdout) as {
      hosts: { name: string; state: string; vms: string[] }[]
      snapshot: { vm: string }
      moves: {
        vm: string
        from: string
        to: string
        total_ms: number
        bytes: number
        claimed_downtime_ms: number
        stall_ms: number
        forecast: { total_ms: number; stall_ms: number; bytes: number }
        client_errors: number
        client: { requests: number }
      }[]
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
    expect(hosts.map((h) => [h.state, h.vms.length])).toEqual([
      ['up', 1],
      ['up', 1],
      ['up', 1],
    ])
    expect(snapshot.vm).toBe('ketoprak')
    expect(moves.map((m) => [m.vm, m.client_errors])).toEqual([
      ['batagor', 0],
      ['mieayam', 0],
      ['ketoprak', 0],
    ])
    for (const m of moves) {
      expect(m.from).not.toBe(m.to)
      // It runs where it went.
      expect(hosts.find((h) => h.name === m.to)?.vms).toEqual([m.vm])
      const figures = [
        m.total_ms,
        m.bytes,
        m.claimed_downtime_ms,
        m.stall_ms,
        m.client.requests,
        ...Object.values(m.forecast),
      ]
      expect(figures.filter((n) => !(n > 0))).toEqual([])
      expect(m.stall_ms).toBeGreaterThanOrEqual(m.claimed_downtime_ms - 5)
    }
    expect(servers.map((s) => [s.name, s.service, s.check.ok])).toEqual([
      ['batagor', 'smb', true],
      ['mieayam', 'ipp', true],
      ['ketoprak', 'http', true],
    ])
    for (const s of servers)
      expect([s.ready_ms > 0, /^(smb|ipp|http):\/\/127\.0\.0\.1:\d+\//.test(s.endpoint)]).toEqual([true, true])
  })

  test('its disks boot by UEFI, too, and not where only signed loaders may', { timeout: 300_000 }, async () => {
    const made = wadah('vm', 'create', 'by-uefi', '--image', 'web-server', '--firmware', 'uefi', '--start')
    expect(made.status, made.stderr).toBe(0)
    const log = (vm: string) => wadah('vm', 'log', vm).stdout
    await until('the login prompt', () => / login: /.test(log('by-uefi')), 240_000)
    await until('the agent', () => wadah('vm', 'exec', 'by-uefi', '--', 'true').status === 0, 60_000)
    expect(wadah('vm', 'exec', 'by-uefi', '--', 'test', '-d', '/sys/firmware/efi').status).toBe(0)
    expect(wadah('vm', 'delete', 'by-uefi', '--force').status).toBe(0)

    const refused = wadah('vm', 'create', 'signed', '--image', 'web-server', '--firmware', 'uefi-secure')
    expect([refused.status, refused.stderr]).toEqual([2, expect.stringContaining('signed by nobody')])
    // The same disk, and nothing that says whose it is: the firmware itself refuses its loader.
    expect(wadah('volume', 'clone', 'image-web-server', 'plain', '--clone', 'linked').status).toBe(0)
    const signed = wadah('vm', 'create', 'signed', '--firmware', 'uefi-secure', '--add-disk', 'volume=plain', '--start')
    expect(signed.status, signed.stderr).toBe(0)
    await until('the refusal', () => /Access Denied|Security Violation/.test(log('signed')), 240_000)
    expect(log('signed')).not.toContain('login:')
    expect(wadah('vm', 'delete', 'signed', '--force').status).toBe(0)
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
    const left = [...readdirSync('/var/lib'), ...readdirSync('/run'), ...readdirSync('/srv')]
    expect(left.filter((name) => name.includes(instance))).toEqual([])
    expect(spawnSync('ip', ['-o', 'link'], { encoding: 'utf8' }).stdout).not.toContain(instance)
    expect(spawnSync('ip', ['netns'], { encoding: 'utf8' }).stdout).not.toContain(instance)
    const seen = spawnSync('ps', ['-eo', 'args='], { encoding: 'utf8' }).stdout
    expect(seen.includes(data)).toBe(false)
    expect(spawnSync('nft', ['list', 'tables'], { encoding: 'utf8' }).stdout.includes(instance)).toBe(false)
  })
})
