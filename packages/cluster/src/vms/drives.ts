/** CD drives, boot order and firmware of a VM: what a request may ask for. */
import { fail } from '@wadah/api/fault'
import type { Cdrom, CdromInput, Firmware, VmSpec } from '@wadah/api/schema/vm'
import { type Deps, find } from '../context.ts'
import { type ImageRecord, imageKind } from '../records.ts'

const MAX_CDROMS = 4

/** An image that can lie in a drive. @throws WadahError `not_found`, `invalid`, `wrong_state` */
export function isoImage(deps: Deps, project: string, ref: string, field: string): ImageRecord {
  const image = find(deps, 'image', imageKind, project, ref, field).value
  if (image.kind !== 'iso') {
    throw fail('invalid', `The image "${image.name}" is of kind ${image.kind}; a CD drive takes one of kind iso.`, {
      field,
      remedy: 'wadah image add NAME --iso FILE',
    })
  }
  if (!image.ready) {
    throw fail('wrong_state', `The file of the CD "${image.name}" is not uploaded yet.`, {
      field,
      remedy: `wadah image show ${image.name}`,
    })
  }
  return image
}

/** New drives beside those that are there: `cd0`, `cd1` … unless named. `disks`: names that are taken too, for the boot order. */
export function planCdroms(
  deps: Deps,
  project: string,
  inputs: readonly CdromInput[],
  there: readonly Cdrom[],
  disks: readonly string[],
  under: string,
): Cdrom[] {
  const out: Cdrom[] = []
  if (there.length + inputs.length > MAX_CDROMS) {
    throw fail('invalid', `A VM has at most ${MAX_CDROMS} CD drives; it would have ${there.length + inputs.length}.`, {
      field: under,
    })
  }
  for (const [i, { name, image }] of inputs.entries()) {
    const taken = [...there, ...out].map((c) => c.name).concat(disks)
    const called = name ?? firstFree(taken)
    if (taken.includes(called))
      throw fail('invalid', `There is a disk or CD drive "${called}" already.`, { field: `${under}/${i}/name` })
    out.push({
      name: called,
      ...(image === undefined ? {} : { image: isoImage(deps, project, image, `${under}/${i}/image`).id }),
    })
  }
  return out
}

function firstFree(taken: readonly string[]): string {
  for (let i = 0; ; i++) if (!taken.includes(`cd${i}`)) return `cd${i}`
}

/** Pure. @throws WadahError `invalid` for a name that is no disk and no drive, or stands there twice */
export function checkBootOrder(order: readonly string[], spec: Pick<VmSpec, 'boot' | 'disks' | 'cdroms'>): void {
  if (spec.boot.kind === 'kernel' && order.length > 0) {
    throw fail('invalid', 'It boots its kernel directly, from no disk.', { field: '/boot_order' })
  }
  const there = [...spec.disks, ...(spec.cdroms ?? [])].map((d) => d.name)
  for (const [i, name] of order.entries()) {
    if (!there.includes(name)) {
      throw fail('invalid', `It has no disk or CD drive "${name}"; it has ${there.join(', ') || 'none'}.`, {
        field: `/boot_order/${i}`,
      })
    }
    if (order.indexOf(name) !== i) throw fail('invalid', `"${name}" stands there twice.`, { field: `/boot_order/${i}` })
  }
}

/** Whether this host and the image can have a TPM. @throws WadahError `host_lacks`, `invalid` */
export async function checkTpm(deps: Deps, image: Pick<ImageRecord, 'name' | 'kind'> | undefined): Promise<void> {
  // With a TPM the tables of SeaBIOS lie where QEMU puts the initrd of an uncompressed kernel (7.2: 160 KiB below the end of RAM).
  if (image?.kind === 'kernel') {
    throw fail(
      'invalid',
      `"${image.name}" is a kernel that QEMU starts itself: its initrd would overwrite the TPM's tables.`,
      {
        field: '/tpm',
        remedy: 'leave the TPM out, or take an image with a disk',
      },
    )
  }
  if ((await deps.machine.offers()).tpm) return
  throw fail('host_lacks', 'This host has no swtpm, which is the TPM of VMs.', {
    field: '/tpm',
    remedy: 'apt-get install swtpm swtpm-tools',
  })
}

/** Whether this host and the image can have it. @throws WadahError `host_lacks`, `invalid` */
export async function checkFirmware(
  deps: Deps,
  firmware: Firmware,
  image: Pick<ImageRecord, 'name' | 'kind' | 'recipe'> | undefined,
): Promise<void> {
  if (firmware.kind === 'bios') return
  if (image?.kind === 'kernel') {
    throw fail('invalid', `"${image.name}" is a kernel that QEMU starts itself: it goes past any firmware.`, {
      field: '/firmware',
      remedy: 'leave the firmware out, or take an image with a disk',
    })
  }
  const kind = firmware.secure_boot ? 'uefi-secure' : 'uefi'
  const { firmware: kinds } = await deps.machine.offers()
  if (!kinds.includes(kind)) {
    throw fail(
      'host_lacks',
      `This host has no UEFI firmware${firmware.secure_boot ? ' with Secure Boot' : ''} for VMs.`,
      {
        field: '/firmware',
        remedy: 'apt install ovmf',
      },
    )
  }
  if (firmware.secure_boot && image?.recipe !== undefined) {
    throw fail('invalid', `The loader of "${image.name}" is signed by nobody: with Secure Boot it would not start.`, {
      field: '/firmware/secure_boot',
      remedy: '--firmware uefi',
    })
  }
}
