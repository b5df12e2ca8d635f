import { existsSync } from 'node:fs'
import { findProgram } from './run.ts'

/** Something the builder needs on this host, and the Debian package that brings it. */
export interface Tool {
  /** Program name, or an absolute path of a data file. */
  name: string
  package: string
}

/** What `buildTiny` needs. */
export const TINY_TOOLS: readonly Tool[] = [
  { name: 'apt-get', package: 'apt' },
  { name: 'dpkg-deb', package: 'dpkg' },
  { name: 'setpriv', package: 'util-linux' },
  { name: 'flock', package: 'util-linux' },
  { name: 'lz4', package: 'lz4' },
  { name: 'depmod', package: 'kmod' },
  { name: '/usr/share/keyrings/debian-archive-keyring.gpg', package: 'debian-archive-keyring' },
]

/** What `buildImage` needs besides. */
export const IMAGE_TOOLS: readonly Tool[] = [
  ...TINY_TOOLS,
  { name: 'mmdebstrap', package: 'mmdebstrap' },
  { name: 'unshare', package: 'util-linux' },
  { name: 'nsenter', package: 'util-linux' },
  { name: 'mount', package: 'mount' },
  { name: 'sfdisk', package: 'fdisk' },
  { name: 'mke2fs', package: 'e2fsprogs' },
  { name: 'mcopy', package: 'mtools' },
  { name: 'mformat', package: 'mtools' },
  { name: 'syslinux', package: 'syslinux' },
  { name: '/usr/lib/syslinux/mbr/gptmbr.bin', package: 'syslinux-common' },
  { name: 'qemu-img', package: 'qemu-utils' },
  { name: 'tar', package: 'tar' },
]

/** What an ordinary user needs in addition to `IMAGE_TOOLS`: a range of subordinate ids and the programs that map it. */
export const USER_TOOLS: readonly Tool[] = [
  { name: 'newuidmap', package: 'uidmap' },
  { name: 'newgidmap', package: 'uidmap' },
]

/** The tools that are not on this host; [] when all is there. The remedy is `apt install` of their packages. */
export function missingTools(needed: readonly Tool[] = defaultTools()): Tool[] {
  return needed.filter((tool) => (tool.name.startsWith('/') ? !existsSync(tool.name) : !findProgram(tool.name)))
}

function defaultTools(): readonly Tool[] {
  return process.getuid?.() === 0 ? IMAGE_TOOLS : [...IMAGE_TOOLS, ...USER_TOOLS]
}
