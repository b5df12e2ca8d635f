import { describe, expect, test } from 'vitest'
import { judge, type Seen } from '../../src/check/judge.ts'

const GIB = 2 ** 30
const good: Seen = {
  root: true,
  accelerator: { kvm: true, reason: 'a test guest reached 64-bit mode under KVM' },
  kvm_device: true,
  cpu_virtualization: true,
  qemu: { version: '7.2.22' },
  qemu_img: true,
  cgroup: { version: 'v2' },
  nat: { ok: true, notes: [] },
  firmware: ['bios', 'uefi', 'uefi-secure'],
  swtpm: true,
  perl: true,
  userfaultfd: false,
  build_packages_missing: [],
  user_namespaces: { max: 1000, unprivileged: true, subuid: true },
  data: { path: '/var/lib/wadah', free_bytes: 50 * GIB, capacity_bytes: 100 * GIB, file_system: 'ext4' },
  memory: { total_mib: 8192, available_mib: 4096, huge_pages: 0, huge_page_kib: 2048 },
  clock: 'synchronized',
  systemd: { running: true, unit: 'enabled' },
}
const notOk = (seen: Partial<Seen>) =>
  judge({ ...good, ...seen })
    .filter((i) => i.state !== 'ok')
    .map((i) => `${i.state} ${i.name} → ${i.remedy ?? '-'}`)

describe('a machine', () => {
  test('that has all of it: everything is ok', () => {
    expect(notOk({})).toEqual([])
    expect(judge(good).map((i) => i.name)).toEqual([
      'qemu',
      'qemu-img',
      'kvm',
      'root',
      'cgroup',
      'networks',
      'uefi',
      'tpm',
      'instant clones',
      'background snapshots',
      'image builds',
      'disk space',
      'memory',
      'clock',
      'systemd',
    ])
  })
  const firmwareSetup =
    'switch on virtualization (VT-x, AMD-V) in the firmware set-up; inside a VM, ask for nested virtualization'
  const room = 'make room, or wadah pool create NAME DIR on another file system'
  const tcg = { kvm: false, reason: 'x' }
  test.each<[string, Partial<Seen>, string[]]>([
    ['without QEMU', { qemu: undefined }, ['lack qemu → apt-get install qemu-system-x86']],
    ['without perl', { perl: false }, ['warn instant clones → apt-get install perl-base']],
    ['without qemu-img', { qemu_img: false }, ['lack qemu-img → apt-get install qemu-utils']],
    ['without VT-x', { accelerator: tcg, cpu_virtualization: false }, [`warn kvm → ${firmwareSetup}`]],
    [
      'without the module',
      { accelerator: tcg, kvm_device: false },
      ['warn kvm → modprobe kvm_intel || modprobe kvm_amd'],
    ],
    [
      'where KVM hangs',
      { accelerator: tcg },
      ['warn kvm → inside a VM, ask for nested virtualization; on bare metal look at `dmesg | grep -i kvm`'],
    ],
    [
      'without control groups',
      { cgroup: { version: 'none', reason: 'y' } },
      ['warn cgroup → mount cgroup2 with the controllers cpu and memory on /sys/fs/cgroup'],
    ],
    [
      'without nftables',
      { nat: { ok: false, reason: 'no nft', remedy: 'apt-get install nftables', notes: [] } },
      ['lack networks → apt-get install nftables'],
    ],
    ['with Docker in the way', { nat: { ok: true, notes: [{ text: 'drops', remedy: 'r' }] } }, ['warn networks → r']],
    ['without swtpm', { swtpm: false }, ['warn tpm → apt-get install swtpm swtpm-tools']],
    ['without OVMF', { firmware: ['bios'] }, ['warn uefi → apt-get install ovmf']],
    [
      'that cannot build',
      { build_packages_missing: ['mmdebstrap', 'mtools'] },
      ['warn image builds → apt-get install mmdebstrap mtools'],
    ],
    ['nearly full', { data: { ...good.data, free_bytes: 6 * GIB } }, [`warn disk space → ${room}`]],
    ['full', { data: { ...good.data, free_bytes: GIB / 2 } }, [`lack disk space → ${room}`]],
    ['without a time service', { clock: 'none' }, ['warn clock → apt-get install systemd-timesyncd']],
    ['before wadah init', { systemd: { running: true, unit: 'none' } }, ['warn systemd → wadah init']],
    ['with the unit off', { systemd: { running: true, unit: 'installed' } }, ['warn systemd → wadah init']],
    [
      'without systemd',
      { systemd: { running: false, unit: 'none' } },
      ['warn systemd → start it with your own init: wadahd; and wadah host stop-guests --yes before the machine ends'],
    ],
  ])('%s', (_what, seen, expected) => {
    expect(notOk(seen)).toEqual(expected)
  })
  test('as an ordinary user works, with less, and says why', () => {
    const user = { root: false, nat: { ok: false, reason: 'root', remedy: 'sudo', notes: [] } }
    expect(notOk(user)).toEqual(['warn root → sudo wadah up, or sudo wadah init', 'warn networks → sudo'])
    expect(notOk({ ...user, user_namespaces: { max: 0, unprivileged: true, subuid: true } })).toContain(
      'warn user namespaces → sysctl -w user.max_user_namespaces=15000',
    )
    expect(notOk({ ...user, user_namespaces: { max: 9, unprivileged: false, subuid: true } })).toContain(
      'warn user namespaces → sysctl -w kernel.unprivileged_userns_clone=1',
    )
    expect(notOk({ ...user, user_namespaces: { max: 9, unprivileged: true, subuid: false } }).join()).toContain(
      'usermod --add-subuids',
    )
  })
})
