/** What was seen of a machine → what it can do, what it lacks, and the command that gets it. Pure. */
import type { CheckItem } from '@wadah/api/schema/host'

export type Seen = {
  root: boolean
  accelerator: { kvm: boolean; reason: string }
  kvm_device: boolean
  cpu_virtualization: boolean
  /** Undefined where QEMU is not there. */
  qemu: { version: string } | undefined
  qemu_problem?: { detail: string; remedy?: string }
  qemu_img: boolean
  cgroup: { version: 'v1' | 'v2' | 'none'; reason?: string }
  nat: { ok: boolean; reason?: string; remedy?: string; notes: { text: string; remedy?: string }[] }
  firmware: readonly string[]
  swtpm: boolean
  /** For memory that instant clones share. */
  perl: boolean
  /** sysctl vm.unprivileged_userfaultfd: QEMU, which is no root, may save what a guest is about to write. */
  userfaultfd: boolean
  /** Programs and files that image builds need, by package. */
  build_packages_missing: readonly string[]
  user_namespaces: { max: number; unprivileged: boolean; subuid: boolean }
  data: { path: string; free_bytes: number; capacity_bytes: number; file_system: string }
  memory: { total_mib: number; available_mib: number; huge_pages: number; huge_page_kib: number }
  /** `none`: nothing that sets the clock is known to run. */
  clock: 'synchronized' | 'running' | 'none'
  systemd: { running: boolean; unit: 'enabled' | 'installed' | 'none' }
}

const GIB = 2 ** 30
const install = (...packages: string[]) => `apt-get install ${packages.join(' ')}`

export function judge(s: Seen): CheckItem[] {
  const out: CheckItem[] = []
  const say = (state: CheckItem['state']) => (name: string, detail: string, remedy?: string) =>
    void out.push({ name, state, detail, ...(remedy === undefined ? {} : { remedy }) })
  const [ok, warn, lack] = [say('ok'), say('warn'), say('lack')]

  if (s.qemu) ok('qemu', `QEMU ${s.qemu.version}`)
  else
    lack(
      'qemu',
      s.qemu_problem?.detail ?? 'QEMU is not installed.',
      s.qemu_problem?.remedy ?? install('qemu-system-x86'),
    )
  if (s.qemu_img) ok('qemu-img', 'disks can be made and converted')
  else lack('qemu-img', 'qemu-img is not installed: disks cannot be made.', install('qemu-utils'))

  if (s.accelerator.kvm) ok('kvm', s.accelerator.reason)
  else warn('kvm', `VMs run by binary translation (TCG), many times slower: ${s.accelerator.reason}.`, kvmRemedy(s))

  if (s.root) ok('root', 'a user of its own for each VM')
  else
    warn(
      'root',
      'wadahd does not run as root: VMs are not shielded from each other, and only user networks can be had.',
      'sudo wadah up, or sudo wadah init',
    )
  if (s.cgroup.version === 'none')
    warn(
      'cgroup',
      `CPU and memory limits do not hold: ${s.cgroup.reason ?? 'no control groups'}.`,
      s.root ? 'mount cgroup2 with the controllers cpu and memory on /sys/fs/cgroup' : 'run wadahd as root',
    )
  else ok('cgroup', `control groups ${s.cgroup.version}`)

  if (s.nat.ok) ok('networks', 'nat networks: nftables, dnsmasq and /dev/net/tun are there')
  else (s.root ? lack : warn)('networks', s.nat.reason ?? 'nat networks cannot be made.', s.nat.remedy)
  for (const note of s.nat.notes) warn('networks', note.text, note.remedy)

  if (s.firmware.includes('uefi'))
    ok('uefi', s.firmware.includes('uefi-secure') ? 'OVMF, with Secure Boot' : 'OVMF, without Secure Boot')
  else warn('uefi', 'OVMF is not installed: VMs boot by BIOS only.', install('ovmf'))

  if (s.swtpm) ok('tpm', 'swtpm: VMs can have a TPM 2.0')
  else warn('tpm', 'swtpm is not installed: VMs have no TPM.', install('swtpm', 'swtpm-tools'))

  if (s.perl) ok('instant clones', 'images can be kept warm')
  else warn('instant clones', 'perl is not installed: images cannot be kept warm.', install('perl-base'))
  // Off is the safer way, and all snapshots work without: nothing to warn of.
  ok(
    'background snapshots',
    s.userfaultfd
      ? 'guests that write faster than their RAM is saved are saved in the background'
      : 'off: guests that write faster than their RAM is saved are held (sysctl -w vm.unprivileged_userfaultfd=1 would change it)',
  )

  if (s.build_packages_missing.length === 0) ok('image builds', 'images can be built from recipes')
  else
    warn(
      'image builds',
      `Recipes cannot be built; missing: ${s.build_packages_missing.join(', ')}.`,
      install(...s.build_packages_missing),
    )
  if (!s.root) userNamespaces(s, ok, warn)

  const free = s.data.capacity_bytes === 0 ? 0 : s.data.free_bytes / s.data.capacity_bytes
  const room = `${gib(s.data.free_bytes)} of ${gib(s.data.capacity_bytes)} GiB free in ${s.data.path} (${s.data.file_system})`
  if (s.data.free_bytes < GIB)
    lack(
      'disk space',
      `${room}: too little to work with.`,
      'make room, or wadah pool create NAME DIR on another file system',
    )
  else if (free < 0.1 || s.data.free_bytes < 5 * GIB)
    warn('disk space', `${room}.`, 'make room, or wadah pool create NAME DIR on another file system')
  else ok('disk space', room)
  if (s.memory.available_mib < 512)
    warn(
      'memory',
      `${s.memory.available_mib} of ${s.memory.total_mib} MiB are free.`,
      'shut down what is not needed: wadah vm list',
    )
  else
    ok(
      'memory',
      `${s.memory.available_mib} of ${s.memory.total_mib} MiB free${s.memory.huge_pages > 0 ? `; ${s.memory.huge_pages} huge pages of ${s.memory.huge_page_kib} KiB set aside, which VMs do not use` : ''}`,
    )

  if (s.clock === 'synchronized') ok('clock', 'it is kept right')
  else if (s.clock === 'running') ok('clock', 'a time service runs')
  else
    warn(
      'clock',
      'nothing is known to keep the clock right: guests begin with it, and certificates go by it.',
      install('systemd-timesyncd'),
    )

  if (!s.systemd.running)
    warn(
      'systemd',
      'this machine does not run systemd: wadahd does not start with it by itself.',
      'start it with your own init: wadahd; and wadah host stop-guests --yes before the machine ends',
    )
  else if (s.systemd.unit === 'enabled') ok('systemd', 'wadahd starts with the machine')
  else
    warn(
      'systemd',
      s.systemd.unit === 'none'
        ? 'wadahd is no unit yet: it does not start with the machine.'
        : 'the unit wadahd.service is not enabled.',
      'wadah init',
    )
  return out
}

function kvmRemedy(s: Seen): string {
  if (!s.cpu_virtualization)
    return 'switch on virtualization (VT-x, AMD-V) in the firmware set-up; inside a VM, ask for nested virtualization'
  if (!s.kvm_device) return 'modprobe kvm_intel || modprobe kvm_amd'
  return 'inside a VM, ask for nested virtualization; on bare metal look at `dmesg | grep -i kvm`'
}

type Say = (name: string, detail: string, remedy?: string) => void

/** What builds without root stand on. */
function userNamespaces({ user_namespaces: u }: Seen, ok: Say, warn: Say): void {
  if (u.max === 0 || !u.unprivileged) {
    warn(
      'user namespaces',
      'ordinary users may not make user namespaces: images cannot be built without root.',
      u.max === 0 ? 'sysctl -w user.max_user_namespaces=15000' : 'sysctl -w kernel.unprivileged_userns_clone=1',
    )
  } else if (!u.subuid)
    warn(
      'user namespaces',
      'this user has no range of subordinate ids: images cannot be built.',
      'usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER',
    )
  else ok('user namespaces', 'images can be built without root')
}

const gib = (bytes: number): string => (Math.floor((bytes / GIB) * 10) / 10).toString()
