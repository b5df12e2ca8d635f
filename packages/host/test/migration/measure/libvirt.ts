/** The same guest between two libvirtds, each in a mount, process and name namespace of its own; both on this machine's loopback. */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { chmod, copyFile, mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { buildTiny } from '../../../src/images/tiny.ts'
import { CACHE } from '../../engine/kit.ts'
import type { PairKit } from '../kit.ts'
import { type Guest, type Moved, Standstill } from './guest.ts'

const run = promisify(execFile)
const LIBVIRTD = '/usr/sbin/libvirtd'
const NAME = 'wadah-move'
const MOVE_MS = 120_000
/** Its folders are its own, and a shell is process 1 there: libvirt waits long for QEMUs that nobody reaps. */
const INSIDE = `set -e
mount -t tmpfs none /run; mkdir -p /run/libvirt /run/lock
for d in /var/lib/libvirt /var/cache/libvirt /etc/libvirt; do mkdir -p "$d"; mount -t tmpfs none "$d"; done
hostname "$2"; cp "$1/qemu.conf" /etc/libvirt/qemu.conf
/usr/sbin/libvirtd -f "$1/libvirtd.conf" &
wait`

type Daemon = { uri: string; child: ChildProcess; events: ChildProcess }

export const hasLibvirt = () => existsSync(LIBVIRTD) && existsSync('/usr/bin/virsh')

/** libvirt's defaults throughout: plain TCP, downtime as QEMU has it. */
export async function libvirtGuest(kit: PairKit, memory_mib: number): Promise<Guest> {
  const stood = { is: new Standstill() }
  const started: Daemon[] = []
  try {
    const [a, b] = [await daemon(kit, 'a', started), await daemon(kit, 'b', started)]
    await define(kit, a, memory_mib)
    let [from, to] = [a, b]
    for (const d of [a, b])
      listen(d, (event, at_ms) => (d === from ? stood.is.from(event, at_ms) : stood.is.to(event, at_ms)))
    return {
      sh: (script) => shell(from, script),
      move: async (secure): Promise<Moved> => {
        if (secure) throw new Error('libvirt moves without TLS unless told otherwise')
        stood.is = new Standstill()
        const begun = performance.now()
        await virsh(from, ['migrate', '--live', '--unsafe', NAME, to.uri, '--migrateuri', 'tcp://127.0.0.1'], MOVE_MS)
        const total = performance.now() - begun
        // The events come by another connection.
        for (let i = 0; Number.isNaN(stood.is.ms) && i < 200; i++) await sleep(10)
        ;[from, to] = [to, from]
        return { total, stall: stood.is.ms }
      },
      end: async () => {
        await virsh(from, ['destroy', NAME]).catch(() => undefined)
        end(started)
      },
    }
  } catch (error) {
    end(started)
    throw error
  }
}

/** unshare ends what is in its process namespace with it. */
function end(daemons: readonly Daemon[]): void {
  for (const { child, events } of daemons) for (const c of [events, child]) c.kill('SIGKILL')
}

async function virsh({ uri }: Pick<Daemon, 'uri'>, words: readonly string[], timeout = 60_000): Promise<string> {
  return (await run('virsh', ['-q', '-c', uri, ...words], { timeout })).stdout
}

async function daemon(kit: PairKit, name: 'a' | 'b', started: Daemon[]): Promise<Daemon> {
  const dir = join(kit.dir, `libvirt-${name}`)
  await mkdir(dir, { mode: 0o755 })
  const uuid = `00000000-0000-4000-8000-00000000000${name}`
  await writeFile(
    join(dir, 'libvirtd.conf'),
    `unix_sock_dir = "${dir}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\nhost_uuid = "${uuid}"\nlog_outputs = "3:file:${dir}/log"\n`,
  )
  // As bare: no security driver, no groups of control, nothing that the comparison would make libvirt pay for.
  await writeFile(
    join(dir, 'qemu.conf'),
    'user = "root"\ngroup = "root"\ndynamic_ownership = 0\nsecurity_driver = "none"\ncgroup_controllers = []\nnamespaces = []\nstdio_handler = "file"\n',
  )
  const flags = ['--mount', '--uts', '--pid', '--fork', '--kill-child', '--mount-proc']
  const child = spawn('unshare', [...flags, '/bin/sh', '-c', INSIDE, 'sh', dir, `lv-${name}`], { stdio: 'ignore' })
  const uri = `qemu+unix:///system?socket=${dir}/libvirt-sock`
  const words = ['-oL', 'virsh', '-q', '-c', uri, 'qemu-monitor-event', '--loop']
  for (let i = 0; ; i++) {
    if (await virsh({ uri }, ['version']).catch(() => undefined)) break
    if (i > 60) {
      child.kill('SIGKILL')
      throw new Error('libvirtd does not answer')
    }
    await sleep(250)
  }
  const found = { uri, child, events: spawn('stdbuf', words, { stdio: ['ignore', 'pipe', 'ignore'] }) }
  started.push(found)
  return found
}

function listen({ events }: Daemon, on: (event: string, at_ms: number) => void): void {
  let rest = ''
  events.stdout?.setEncoding('utf8').on('data', (text: string) => {
    const lines = (rest + text).split('\n')
    rest = lines.pop() ?? ''
    for (const line of lines) {
      const [, event, seconds] = /^event (\w+) at (\d+\.\d+)/.exec(line) ?? []
      if (event !== undefined) on(event, Number(seconds) * 1000)
    }
  })
}

async function define(kit: PairKit, to: Daemon, memory_mib: number): Promise<void> {
  const tiny = await buildTiny({ outDir: `${CACHE}/tiny`, cacheDir: CACHE, agent: true })
  const dir = join(kit.dir, 'libvirt-guest')
  await mkdir(dir, { mode: 0o755 })
  await copyFile(tiny.kernel, `${dir}/kernel`)
  await copyFile(tiny.initrd, `${dir}/initrd`)
  // The disk of ours is one in a shared folder, too.
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', `${dir}/disk.qcow2`, '32M'])
  await chmod(dir, 0o755)
  const cmdline = tiny.cmdline.replaceAll('&', '&amp;').replaceAll('<', '&lt;')
  await writeFile(
    `${dir}/domain.xml`,
    `<domain type='qemu'><name>${NAME}</name><memory unit='MiB'>${memory_mib}</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><kernel>${dir}/kernel</kernel><initrd>${dir}/initrd</initrd><cmdline>${cmdline}</cmdline></os>
<features><acpi/><apic/></features><cpu mode='custom' match='exact'><model fallback='allow'>qemu64</model></cpu>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/><source file='${dir}/disk.qcow2'/><target dev='vda' bus='virtio'/></disk>
<serial type='pty'/><console type='pty'/><channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<graphics type='vnc'><listen type='socket'/></graphics><video><model type='vga'/></video><memballoon model='virtio'/><rng model='virtio'><backend model='builtin'/></rng></devices></domain>`,
  )
  await virsh(to, ['create', `${dir}/domain.xml`])
}

async function shell(at: Daemon, script: string): Promise<void> {
  const agent = async (execute: string, args: unknown) =>
    JSON.parse(await virsh(at, ['qemu-agent-command', NAME, JSON.stringify({ execute, arguments: args })])) as {
      return: { pid: number; exited?: boolean; exitcode?: number }
    }
  for (let i = 0; ; i++) {
    try {
      await agent('guest-ping', {})
      break
    } catch (error) {
      if (i > 60) throw error
      await sleep(1_000)
    }
  }
  const { pid } = (await agent('guest-exec', { path: 'sh', arg: ['-c', script] })).return
  for (let i = 0; i < 600; i++) {
    const { exited, exitcode } = (await agent('guest-exec-status', { pid })).return
    if (exited && exitcode === 0) return
    if (exited) throw new Error(`${script} ended with ${exitcode}`)
    await sleep(200)
  }
  throw new Error(`${script} does not end`)
}
