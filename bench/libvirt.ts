/** The same guest under libvirt, where a libvirtd answers. Nothing is installed or started here. */
import { execFile } from 'node:child_process'
import { copyFileSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { promisify } from 'node:util'
import type { Recipe } from './bare.ts'
import { timed } from './kit.ts'

const run = promisify(execFile)
const NAME = 'wadah-bench'
/** `WADAH_BENCH_LIBVIRT` names another one, such as a libvirtd started by hand with its own socket. */
const URI = process.env['WADAH_BENCH_LIBVIRT'] ?? 'qemu:///system'
const virsh = (...words: string[]) => run('virsh', ['-q', '-c', URI, ...words], { timeout: 60_000 })

export type Guest = { start(): Promise<number>; stop(): Promise<void>; remove(): Promise<void> }

const xml = (text: string) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;')

/** @throws Error when there is no libvirt, or it cannot run this guest */
export async function libvirtGuest(recipe: Recipe, scratch: string): Promise<Guest> {
  await virsh('version').catch((error: NodeJS.ErrnoException) => {
    throw new Error(error.code === 'ENOENT' ? 'virsh is not installed' : `no libvirtd answers at ${URI}`)
  })
  const option = (name: string) => recipe.argv[recipe.argv.indexOf(name) + 1] ?? ''
  // libvirt's own user must be able to read them, and it changes their owner.
  const folder = `${scratch}/libvirt`
  mkdirSync(folder, { recursive: true, mode: 0o755 })
  copyFileSync(option('-kernel'), `${folder}/kernel`)
  copyFileSync(option('-initrd'), `${folder}/initrd`)
  const mib = /size=(\d+)M/.exec(option('-m'))?.[1] ?? '96'
  const machine = option('-machine').split(',')[0] ?? 'pc-q35-7.2'
  const domain = `<domain type='qemu'><name>${NAME}</name><memory unit='MiB'>${mib}</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='${machine}'>hvm</type><kernel>${folder}/kernel</kernel><initrd>${folder}/initrd</initrd><cmdline>${xml(option('-append'))}</cmdline></os>
<features><acpi/><apic/></features><cpu mode='custom' match='exact'><model fallback='allow'>qemu64</model></cpu>
<devices><emulator>${recipe.argv[0]}</emulator><serial type='pty'/><console type='pty'/><channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<graphics type='vnc'><listen type='socket'/></graphics><video><model type='vga'/></video><memballoon model='virtio'/><rng model='virtio'><backend model='builtin'/></rng></devices></domain>`
  writeFileSync(`${folder}/domain.xml`, domain)
  await virsh('destroy', NAME).catch(() => undefined)
  await virsh('undefine', NAME).catch(() => undefined)
  await virsh('define', `${folder}/domain.xml`)
  const guest: Guest = {
    start: async () => (await timed(() => virsh('start', NAME)))[0],
    stop: async () => void (await virsh('destroy', NAME)),
    remove: async () => {
      await virsh('destroy', NAME).catch(() => undefined)
      await virsh('undefine', NAME).catch(() => undefined)
      rmSync(folder, { recursive: true, force: true })
    },
  }
  try {
    await guest.start()
    await guest.stop()
  } catch (error) {
    await guest.remove()
    throw new Error(
      `virsh start failed: ${(error as { stderr?: string }).stderr?.trim().split('\n')[0] ?? String(error)}`,
    )
  }
  return guest
}
