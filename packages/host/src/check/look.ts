/** Looks at this machine; what it means is said by `judge`. Nothing is changed, and nothing that is missing is an error. */
import { access, readFile } from 'node:fs/promises'
import { userInfo } from 'node:os'
import { toFault } from '@wadah/api/fault'
import type { CheckItem } from '@wadah/api/schema/host'
import type { Networks } from '@wadah/ports/networks'
import type { CgroupLayout } from '../engine/cgroup.ts'
import { cpuFacts, memoryFacts, qemuFacts } from '../engine/facts.ts'
import { firmwareKinds } from '../engine/firmware.ts'
import { processes } from '../engine/process.ts'
import { tpmPrograms } from '../engine/tpm.ts'
import { findProgram } from '../images/run.ts'
import { missingTools } from '../images/tools.ts'
import { room } from '../storage/file-system.ts'
import { judge, type Seen } from './judge.ts'

const TIME_SERVICES = /(^|\/)(chronyd|ntpd|openntpd|systemd-timesyncd|timemaster|phc2sys)$/

export type Looking = {
  root: boolean
  dataDir: string
  qemu: string
  layout: CgroupLayout
  networks: Pick<Networks, 'support'>
  acceleration: Promise<{ accelerator: 'kvm' | 'tcg'; reason: string }>
}

const exists = (path: string): Promise<boolean> =>
  access(path).then(
    () => true,
    () => false,
  )
const text = (path: string): Promise<string> => readFile(path, 'utf8').catch(() => '')

export async function inspect(o: Looking): Promise<CheckItem[]> {
  const [
    cpu,
    memory,
    meminfo,
    qemu,
    accelerator,
    nat,
    firmware,
    data,
    kvm_device,
    clock,
    systemd,
    spaces,
    userfaultfd,
  ] = await Promise.all([
    cpuFacts(),
    memoryFacts(),
    text('/proc/meminfo'),
    qemuFacts(o.qemu).catch((error: unknown) => toFault(error)),
    o.acceleration.catch((error: unknown) => ({ accelerator: 'tcg' as const, reason: toFault(error).detail })),
    o.networks.support(),
    firmwareKinds(),
    room(o.dataDir),
    exists('/dev/kvm'),
    clockState(),
    systemdState(),
    userNamespaces(),
    text('/proc/sys/vm/unprivileged_userfaultfd'),
  ])
  const number = (key: string) => Number(new RegExp(`^${key}:\\s+(\\d+)`, 'm').exec(meminfo)?.[1] ?? 0)
  const seen: Seen = {
    root: o.root,
    accelerator: { kvm: accelerator.accelerator === 'kvm', reason: accelerator.reason },
    kvm_device,
    cpu_virtualization: cpu.flags.has('vmx') || cpu.flags.has('svm'),
    qemu: 'version' in qemu ? { version: qemu.version } : undefined,
    ...('detail' in qemu
      ? { qemu_problem: { detail: qemu.detail, ...(qemu.remedy === undefined ? {} : { remedy: qemu.remedy }) } }
      : {}),
    qemu_img: findProgram('qemu-img') !== undefined,
    cgroup: o.layout.version === 'none' ? { version: 'none', reason: o.layout.reason } : { version: o.layout.version },
    nat: {
      ok: nat.nat,
      ...(nat.reason === undefined ? {} : { reason: nat.reason }),
      ...(nat.remedy === undefined ? {} : { remedy: nat.remedy }),
      notes: nat.notes ?? [],
    },
    firmware,
    swtpm: tpmPrograms() !== undefined,
    perl: findProgram('perl') !== undefined,
    userfaultfd: userfaultfd.trim() === '1',
    build_packages_missing: [...new Set(missingTools().map((tool) => tool.package))].sort(),
    user_namespaces: spaces,
    data: { path: o.dataDir, ...data },
    memory: { ...memory, huge_pages: number('HugePages_Total'), huge_page_kib: number('Hugepagesize') },
    clock,
    systemd,
  }
  return judge(seen)
}

/** systemd-timesyncd says it by a file; of others only their process can be seen. */
async function clockState(): Promise<Seen['clock']> {
  if (await exists('/run/systemd/timesync/synchronized')) return 'synchronized'
  const running = await processes((argv) => TIME_SERVICES.test(argv[0] ?? ''))
  return running.length > 0 ? 'running' : 'none'
}

/** sd_booted(3). */
async function systemdState(): Promise<Seen['systemd']> {
  const folders = ['/etc/systemd/system', '/usr/lib/systemd/system', '/lib/systemd/system']
  const [running, enabled, ...installed] = await Promise.all([
    exists('/run/systemd/system'),
    exists('/etc/systemd/system/multi-user.target.wants/wadahd.service'),
    ...folders.map((f) => exists(`${f}/wadahd.service`)),
  ])
  return { running: running === true, unit: enabled ? 'enabled' : installed.some(Boolean) ? 'installed' : 'none' }
}

/** A user id need not be in /etc/passwd. */
function userName(): string | undefined {
  try {
    return userInfo().username
  } catch {
    return undefined
  }
}

async function userNamespaces(): Promise<Seen['user_namespaces']> {
  const [max, clone, subuid] = await Promise.all([
    text('/proc/sys/user/max_user_namespaces'),
    text('/proc/sys/kernel/unprivileged_userns_clone'),
    text('/etc/subuid'),
  ])
  const uid = process.getuid?.() ?? 0
  return {
    max: Number(max.trim() || 0),
    // Debian's own switch; other kernels do not have it.
    unprivileged: clone.trim() !== '0',
    subuid: subuid.split('\n').some((line) => line.startsWith(`${userName()}:`) || line.startsWith(`${uid}:`)),
  }
}
