/** What this host is and has, and what on it wants attention: for `wadah host show` and for whoever decides by it. */
import type { HostFacts, HostOffers } from '@wadah/ports/machine'
import type { Networks } from '@wadah/ports/networks'
import type { CgroupLayout } from './cgroup.ts'
import { cpuFacts, memoryFacts, qemuFacts } from './facts.ts'
import { firmwareKinds } from './firmware.ts'
import type { Acceleration } from './probe/accelerator.ts'
import type { Share } from './share.ts'
import { tpmPrograms } from './tpm.ts'

export type HostFactsOptions = {
  qemu: string
  root: boolean
  layout: CgroupLayout
  /** What the control group of this daemon's VMs leaves them. */
  share: Share
  networks: Networks
  acceleration: Promise<Acceleration>
  /** Names of VMs that run and whose TPM has ended. */
  tpmLost: readonly string[]
}

const MIB = 2 ** 20
/** The machine's memory, or the part of it that our group may use. Pure. */
export function memoryWithin(
  machine: { total_mib: number; available_mib: number },
  { memory_bytes, memory_used_bytes = 0 }: Share,
): { memory_mib: number; memory_free_mib: number } {
  if (memory_bytes === undefined || memory_bytes >= machine.total_mib * MIB)
    return { memory_mib: machine.total_mib, memory_free_mib: machine.available_mib }
  const free = Math.max(0, Math.floor((memory_bytes - memory_used_bytes) / MIB))
  return { memory_mib: Math.floor(memory_bytes / MIB), memory_free_mib: Math.min(machine.available_mib, free) }
}

/** The cheap part; QEMU is asked only when it was replaced. */
export async function hostOffers(path: string, acceleration: Promise<Acceleration>): Promise<HostOffers> {
  const [qemu, { accelerator }, firmware] = await Promise.all([qemuFacts(path), acceleration, firmwareKinds()])
  return { accelerator, qemu_version: qemu.version, firmware, tpm: tpmPrograms() !== undefined }
}

export async function hostFacts(o: HostFactsOptions): Promise<HostFacts> {
  const [cpu, memory, offers, { reason }, nat] = await Promise.all([
    cpuFacts(),
    memoryFacts(),
    hostOffers(o.qemu, o.acceleration),
    o.acceleration,
    o.networks.support(),
  ])
  const { layout } = o
  const kvm = offers.accelerator === 'kvm'
  return {
    cpu_model: cpu.model,
    cpus: Math.min(cpu.cpus, o.share.cpus ?? cpu.cpus),
    ...memoryWithin(memory, o.share),
    ...offers,
    accelerator_reason: reason,
    techniques: [
      { name: 'hardware-assisted (KVM)', available: kvm, detail: reason },
      {
        name: 'full virtualization by binary translation (TCG)',
        available: true,
        detail: `QEMU ${offers.qemu_version}; needs nothing of the CPU`,
      },
      {
        name: 'paravirtual devices (virtio)',
        available: true,
        detail: 'disk, network, memory balloon, console, entropy',
      },
    ],
    cgroup: layout.version,
    root: o.root,
    attention: [
      ...(kvm
        ? []
        : [
            {
              about: 'accelerator',
              detail: `VMs run by binary translation (TCG), which is many times slower than KVM: ${reason}.`,
              remedy:
                'switch on virtualization (VT-x, AMD-V) in the firmware set-up; inside a VM, ask for nested virtualization',
            },
          ]),
      ...(layout.version === 'none'
        ? [
            {
              about: 'limits',
              detail: `CPU and memory limits do not hold: ${layout.reason}.`,
              remedy: 'run wadahd as root',
            },
          ]
        : []),
      ...o.tpmLost.map((name) => ({
        about: 'tpm',
        detail: `The TPM of "${name}" (swtpm) has ended; its guest can't reach what it keeps in it.`,
        remedy: `wadah vm shutdown ${name}; wadah vm start ${name}`,
      })),
      ...(nat.notes ?? []).map((note) => ({
        about: 'networks',
        detail: note.text,
        ...(note.remedy === undefined ? {} : { remedy: note.remedy }),
      })),
      ...(nat.reason === undefined
        ? []
        : [{ about: 'networks', detail: nat.reason, ...(nat.remedy === undefined ? {} : { remedy: nat.remedy }) }]),
    ],
  }
}
