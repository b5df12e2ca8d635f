import { join } from 'node:path'
import type { Site } from './install.ts'
import { diskLayout } from './layout.ts'

/**
 * Put on every image: the serial port is the console; `quiet` because each line costs time there; RAM that comes is
 * used at once. `no_timer_check`: a guest that a busy host lets wait early in its boot would take its timer for broken, and panic
 * (arch/x86/kernel/apic/io_apic.c; under KVM Linux leaves the check out by itself).
 */
export const DISK_CMDLINE =
  'console=tty0 console=ttyS0 quiet no_timer_check cryptomgr.notests memhp_default_state=online'

export interface DiskOptions {
  /** Path of the raw disk to make, inside the sandbox. */
  raw: string
  /** A folder inside the sandbox for what goes on the boot partition. */
  scratch: string
  /** systemd-boot's program, for UEFI. */
  bootx64: string
  wanted_mib: number
  /** Of the root file system. */
  uuid: string
}

const COUNT = 'du -s --apparent-size -B1 "$1"; find "$1" -xdev | wc -l'
const STAGE = `set -e
root="$1" scratch="$2"
rm -rf "$scratch"
mkdir -p "$root/boot/esp"
chroot "$root" /usr/lib/wadah/update-boot --esp /boot/esp
mv "$root/boot/esp" "$scratch"
mkdir -p "$scratch/EFI/BOOT"
cp "$3" "$scratch/EFI/BOOT/BOOTX64.EFI"`
const COPY = 'exec mcopy -s -Q -i "$1" "$2"/* ::/'

/**
 * Make a raw disk from the tree: no loop device, no mount. It starts by itself on BIOS (syslinux) and UEFI
 * (systemd-boot), both from one kernel and initrd on the boot partition.
 * @returns the size the guest sees, in bytes
 */
export async function makeDisk(site: Site, options: DiskOptions): Promise<number> {
  const { sandbox, root } = site
  const { raw, scratch, uuid } = options
  const conf = `# Read by /usr/lib/wadah/update-boot; run that after a change.\nROOT=UUID=${uuid}\nCMDLINE="${DISK_CMDLINE}"\n`
  await sandbox.run(['tee', join(root, 'etc/wadah/boot.conf')], { stdin: Buffer.from(conf) })
  const fstab = '# The root file system is mounted by the initrd, see /usr/lib/wadah/make-initrd.\n'
  await sandbox.run(['tee', join(root, 'etc/fstab')], { stdin: Buffer.from(fstab) })
  await sandbox.run(['sh', '-c', STAGE, 'stage', root, scratch, options.bootx64], { log: site.log })
  const counted = (await sandbox.run(['sh', '-c', COUNT, 'count', root])).stdout.split(/\s+/)
  const layout = diskLayout({ bytes: Number(counted[0]), files: Number(counted[2]) }, options.wanted_mib)

  await sandbox.run(['truncate', '-s', String(layout.disk_bytes), raw])
  await sandbox.run(['sfdisk', '-q', raw], { stdin: Buffer.from(layout.sfdisk) })
  const features = `offset=${layout.root.offset_bytes},lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0`
  const size = `${layout.root.size_kib}k`
  const mkfs = [
    'mke2fs',
    '-q',
    '-F',
    '-t',
    'ext4',
    '-d',
    root,
    '-U',
    uuid,
    '-L',
    'root',
    '-m',
    '1',
    '-E',
    features,
    raw,
    size,
  ]
  await sandbox.run(mkfs, { env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', MKE2FS_DEVICE_SECTSIZE: '512' } })
  const esp = `${raw}@@${layout.esp.offset_bytes}`
  const mformat = [
    'mformat',
    '-i',
    esp,
    '-F',
    '-v',
    'ESP',
    '-T',
    String(layout.esp.sectors),
    '-h',
    '64',
    '-s',
    '32',
    '::',
  ]
  await sandbox.run(mformat)
  await sandbox.run(['sh', '-c', COPY, 'copy', esp, scratch], {
    env: { PATH: '/usr/bin:/bin', MTOOLS_SKIP_CHECK: '1' },
  })
  await sandbox.run(['syslinux', '--install', '-d', '/syslinux', '--offset', String(layout.esp.offset_bytes), raw])
  await sandbox.run([
    'dd',
    'if=/usr/lib/syslinux/mbr/gptmbr.bin',
    `of=${raw}`,
    'bs=440',
    'count=1',
    'conv=notrunc',
    'status=none',
  ])
  return layout.disk_bytes
}
