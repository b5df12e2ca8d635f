import { createHash } from 'node:crypto'
import { copyFile, mkdir, mkdtemp, readdir, readFile, realpath, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fail } from '@wadah/api/fault'
import { type Apt, download, kernelPackage, openApt } from './apt.ts'
import { type CpioEntry, packCpio } from './cpio.ts'
import { moduleOrder } from './kmod.ts'
import { CommandError, run } from './run.ts'
import {
  TINY_AGENT_RUN,
  TINY_CMDLINE,
  TINY_DHCP,
  TINY_INIT,
  TINY_MODULES,
  TINY_SETTLE,
  TINY_SHUTDOWN,
  TINY_UPTIME_CGI,
} from './tiny-init.ts'
import { missingTools, TINY_TOOLS } from './tools.ts'

export interface TinyOptions {
  /** Where `kernel` and `initrd` are written; made when missing. */
  outDir: string
  /** Downloads and finished guests are kept here between calls. */
  cacheDir: string
  /** With the real qemu-guest-agent inside (about 4 MB more). */
  agent?: boolean | undefined
  /** Besides the agent, the guest part of instant clones: the program text. */
  guestPart?: string | undefined
  /** A Debian mirror to use in place of the host's own sources. */
  mirror?: string | undefined
  signal?: AbortSignal | undefined
  log?: ((line: string) => void) | undefined
}

export interface TinyGuest {
  /** An ELF file with a PVH entry, for QEMU's -kernel. */
  kernel: string
  /** An uncompressed cpio archive, for -initrd. */
  initrd: string
  /** For -append; knobs of tiny-init.ts may be added to it. */
  cmdline: string
  /** The kernel's version, what `uname -r` prints in the guest. */
  version: string
}

const AGENT_PACKAGES = [
  'qemu-guest-agent',
  'libc6',
  'libglib2.0-0',
  'libpcre2-8-0',
  'libnuma1',
  'libudev1',
  'liburing2',
]

/** The guest part is written in perl. */
const PART_PACKAGES = ['perl-base', 'libcrypt1']

/**
 * Build the tiny test guest: the distribution's kernel and a busybox initramfs. It boots in about two seconds under TCG
 * with 96 MiB: `-kernel K -initrd I -append CMDLINE`, serial port for the console, virtio NICs and disks.
 * Finished guests are cached by kernel version.
 * @throws WadahError `host_lacks` when a tool is missing, `build_failed` otherwise.
 */
export async function buildTiny(options: TinyOptions): Promise<TinyGuest> {
  const missing = missingTools(TINY_TOOLS)
  if (missing.length > 0)
    throw fail('host_lacks', `building the tiny guest needs ${missing.map((t) => t.name).join(', ')}`, {
      remedy: `apt install ${[...new Set(missing.map((t) => t.package))].join(' ')}`,
    })
  const apt = await openApt(options)
  const packageName = await kernelPackage(apt, options.signal)
  const version = packageName.replace(/^linux-image-/, '')
  const cached = join(
    options.cacheDir,
    'tiny',
    `${version}-${tinyDigest(options.guestPart)}${options.agent ? '-agent' : ''}`,
  )
  if (!(await readdir(cached).catch((): string[] => [])).includes('initrd'))
    await make(apt, packageName, version, cached, options)
  await mkdir(options.outDir, { recursive: true })
  const guest = {
    kernel: join(options.outDir, 'vmlinux'),
    initrd: join(options.outDir, options.agent ? 'tiny-agent.cpio' : 'tiny.cpio'),
  }
  await place(join(cached, 'vmlinux'), guest.kernel)
  await place(join(cached, 'initrd'), guest.initrd)
  return { ...guest, cmdline: TINY_CMDLINE, version }
}

/** Changes whenever anything of ours inside the guest does. */
function tinyDigest(guestPart = ''): string {
  const parts = [
    TINY_INIT,
    TINY_DHCP,
    TINY_UPTIME_CGI,
    TINY_AGENT_RUN,
    TINY_SHUTDOWN,
    TINY_MODULES.join(),
    AGENT_PACKAGES.join(),
    ...(guestPart === '' ? [] : [guestPart, TINY_SETTLE, PART_PACKAGES.join()]),
  ]
  return createHash('sha256').update(parts.join('\0')).digest('hex').slice(0, 12)
}

/** Copy by way of a new name, so that a reader never sees half a file. */
async function place(from: string, to: string): Promise<void> {
  const part = `${to}.${process.pid}.part`
  await copyFile(from, part)
  await rename(part, to)
}

async function make(apt: Apt, kernel: string, version: string, cached: string, options: TinyOptions): Promise<void> {
  await mkdir(join(options.cacheDir, 'tiny'), { recursive: true })
  const work = await mkdtemp(join(options.cacheDir, 'tiny', '.work-'))
  try {
    const opts = { signal: options.signal, log: options.log }
    options.log?.(`building the tiny guest for kernel ${version}`)
    const debs = await download(apt, [kernel, 'busybox-static', ...insidePackages(options)], opts)
    const trees = new Map<string, string>()
    for (const deb of debs) {
      const tree = join(work, deb.name)
      await run(['dpkg-deb', '-x', deb.file, tree], opts)
      trees.set(deb.name, tree)
    }
    const kernelTree = join(work, kernel)
    await run(['depmod', '-b', kernelTree, version], opts)
    const out = join(work, 'out')
    await mkdir(out)
    await writeFile(
      join(out, 'vmlinux'),
      await extractVmlinux(join(kernelTree, 'boot', `vmlinuz-${version}`), opts.signal),
    )
    const modules = await readModules(join(kernelTree, 'lib', 'modules', version))
    const busybox = await readFile(join(work, 'busybox-static', 'bin', 'busybox'))
    const agent = options.agent ? await agentEntries(work, options) : []
    await writeFile(join(out, 'initrd'), packCpio(tinyEntries(busybox, modules, agent)))
    // Another build may have been quicker; its result is as good.
    await rename(out, cached).catch(async (error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error
    })
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

/** The uncompressed kernel inside a bzImage: from the LZ4 "legacy frame" magic on (lz4, doc/lz4_Frame_format.md). */
async function extractVmlinux(vmlinuz: string, signal: AbortSignal | undefined): Promise<Buffer> {
  const image = await readFile(vmlinuz)
  const start = image.indexOf(Buffer.from([0x02, 0x21, 0x4c, 0x18]))
  if (start < 0) throw fail('build_failed', `${vmlinuz} holds no LZ4-compressed kernel`, { retryable: false })
  const packed = `${vmlinuz}.lz4`
  const plain = `${vmlinuz}.elf`
  await writeFile(packed, image.subarray(start))
  // What follows the compressed kernel in the file makes lz4 end with an error after all of it was written.
  await run(['lz4', '-d', '-f', '-q', packed, plain], { signal }).catch((error: unknown) => {
    if (!(error instanceof CommandError)) throw error
  })
  const elf = await readFile(plain).catch(() => Buffer.alloc(0))
  if (!elf.subarray(0, 4).equals(Buffer.from('\x7fELF')))
    throw fail('build_failed', `the kernel inside ${vmlinuz} could not be extracted`, { retryable: false })
  return elf
}

interface ModuleFile {
  name: string
  data: Uint8Array
}

async function readModules(dir: string): Promise<ModuleFile[]> {
  const order = moduleOrder(await readFile(join(dir, 'modules.dep'), 'utf8'), TINY_MODULES)
  return Promise.all(
    order.map(async (path) => ({ name: path.split('/').pop() ?? path, data: await readFile(join(dir, path)) })),
  )
}

/** Everything in the initramfs. Pure. */
export function tinyEntries(
  busybox: Uint8Array,
  modules: readonly ModuleFile[],
  agent: readonly CpioEntry[],
): CpioEntry[] {
  const dir = (path: string): CpioEntry => ({ kind: 'dir', path })
  const script = (path: string, text: string): CpioEntry => ({
    kind: 'file',
    path,
    mode: 0o755,
    data: Buffer.from(text),
  })
  return [
    ...['bin', 'sbin', 'dev', 'proc', 'sys', 'etc', 'modules', 'www', 'www/cgi-bin'].map(dir),
    { kind: 'char', path: 'dev/console', mode: 0o600, major: 5, minor: 1 },
    { kind: 'char', path: 'dev/null', mode: 0o666, major: 1, minor: 3 },
    { kind: 'file', path: 'bin/busybox', mode: 0o755, data: busybox },
    { kind: 'link', path: 'bin/sh', target: 'busybox' },
    script('init', TINY_INIT),
    script('dhcp', TINY_DHCP),
    script('sbin/shutdown', TINY_SHUTDOWN),
    script('www/cgi-bin/uptime', TINY_UPTIME_CGI),
    { kind: 'file', path: 'etc/passwd', data: Buffer.from('root::0:0:root:/:/bin/sh\n') },
    { kind: 'file', path: 'etc/group', data: Buffer.from('root:x:0:\n') },
    { kind: 'file', path: 'modules/order', data: Buffer.from(modules.map((m) => `${m.name}\n`).join('')) },
    ...modules.map((m): CpioEntry => ({ kind: 'file', path: `modules/${m.name}`, data: m.data })),
    ...agent,
  ]
}

function insidePackages({ agent, guestPart }: TinyOptions): string[] {
  if (!agent) return []
  return [...AGENT_PACKAGES, ...(guestPart === undefined ? [] : PART_PACKAGES)]
}

/** The guest agent with its libraries, found by their sonames in the unpacked packages. */
async function agentEntries(work: string, options: TinyOptions): Promise<CpioEntry[]> {
  const file = async (path: string, from: string, mode: number): Promise<CpioEntry> => ({
    kind: 'file',
    path,
    mode,
    data: await readFile(from),
  })
  const entries: CpioEntry[] = [
    { kind: 'dir', path: 'agent' },
    { kind: 'dir', path: 'agent/lib' },
  ]
  for (const name of insidePackages(options).filter((n) => n.startsWith('lib')))
    for (const lib of ['lib', 'usr/lib'].map((d) => join(work, name, d, 'x86_64-linux-gnu')))
      for (const so of await readdir(lib).catch(() => []))
        if (
          /^(lib(c|m|crypt|pthread|dl|rt|glib-2\.0|gmodule-2\.0|gthread-2\.0|pcre2-8|numa|udev|uring)\.so\.\d+|ld-linux-x86-64\.so\.2)$/.test(
            so,
          )
        )
          entries.push(await file(`agent/lib/${so}`, await realpath(join(lib, so)), 0o755))
  entries.push(await file('agent/qemu-ga', join(work, 'qemu-guest-agent', 'usr/sbin/qemu-ga'), 0o755))
  const text = (path: string, data: string) =>
    entries.push({ kind: 'file', path: `agent/${path}`, mode: 0o755, data: Buffer.from(data) })
  text('run', TINY_AGENT_RUN)
  if (options.guestPart !== undefined) {
    entries.push(await file('agent/perl', join(work, 'perl-base', 'usr/bin/perl'), 0o755))
    text('identity', options.guestPart)
    text('settle', TINY_SETTLE)
  }
  return entries
}
