/** Which images can be warm, and which VMs can be instant clones. Everything else is refused, with the reason. Pure. */
import { fail } from '@wadah/api/fault'
import type { VmCreate } from '@wadah/api/schema/vm'
import type { ImageRecord, NetworkRecord } from '../records.ts'

/** The template's only NIC and disk; a clone has the same. */
export const TEMPLATE_NIC = 'net1'
export const TEMPLATE_DISK = 'root'

/**
 * A template is booted from nothing but the image, without user, password or key, so that there is no secret in its RAM; and the image
 * must be one that we built: another may hold anything, and has no guest part that gives a clone an identity of its own.
 */
export function checkWarmable(image: ImageRecord): void {
  const no = (detail: string, remedy?: string) =>
    fail('wrong_state', detail, { field: '/image', ...(remedy === undefined ? {} : { remedy }) })
  if (!image.ready) throw no(`The image "${image.name}" is not ready.`, `wadah image show ${image.name}`)
  if (image.recipe === undefined || image.source !== undefined || image.more_volumes !== undefined)
    throw no(
      `"${image.name}" was not built from a recipe: its clones could share what is secret in it, and nothing in it makes them differ.`,
      'wadah image recipes; wadah image build RECIPE',
    )
  if (!image.agent) throw no(`"${image.name}" has no guest agent, and so no guest part for instant clones.`)
  if (image.warm)
    throw no(
      `The image "${image.name}" is warm already (${image.warm.memory_mib} MiB).`,
      `wadah image unwarm ${image.name}`,
    )
}

/** The template an instant clone is made from. @throws WadahError that names what can't be as asked */
export function checkInstant(body: VmCreate, image: ImageRecord | undefined): NonNullable<ImageRecord['warm']> {
  const no = (detail: string, field: string, remedy?: string) =>
    fail('invalid', detail, { field, ...(remedy === undefined ? {} : { remedy }) })
  if (!image) throw no('An instant clone is made from an image.', '/image', 'wadah image list')
  const { warm } = image
  if (!warm)
    throw fail('wrong_state', `The image "${image.name}" is not warm.`, {
      field: '/instant',
      remedy: `wadah image warm ${image.name}`,
    })
  const again = `leave it out, or leave out --instant; other sizes: wadah image unwarm ${image.name}, then wadah image warm ${image.name} --memory … --cpus …`
  if (!body.start) throw no('An instant clone is started at once: "start" is needed.', '/start')
  if (body.cpus !== undefined && body.cpus !== warm.cpus)
    throw no(`The template has ${warm.cpus} CPUs, and so has each instant clone.`, '/cpus', again)
  if (body.memory_mib !== undefined && body.memory_mib !== warm.memory_mib)
    throw no(`The template has ${warm.memory_mib} MiB, and so has each instant clone.`, '/memory_mib', again)
  if (body.firmware !== undefined && body.firmware.kind !== 'bios')
    throw no('The template has a BIOS.', '/firmware', again)
  const seed = body.seed?.kind ?? 'wadah'
  const given: [boolean, string, string][] = [
    [body.clone === 'full', '/clone', 'Its disk stands on that of the template: it is a linked clone.'],
    [body.pool !== undefined, '/pool', 'Its disk lies in the pool of the template.'],
    [body.disk_mib !== undefined, '/disk_mib', 'Its disk has the size of the template.'],
    [(body.disks ?? []).length > 0, '/disks', 'The template has no further disks; add them once it runs.'],
    [(body.cdroms ?? []).length > 0, '/cdroms', 'The template has no CD drive.'],
    [body.boot_order !== undefined, '/boot_order', 'It does not boot.'],
    [body.cmdline !== undefined, '/cmdline', 'Its kernel runs already.'],
    [
      body.balloon_mib !== undefined,
      '/balloon_mib',
      'It shares memory with its template, which a balloon can not give back.',
    ],
    [seed !== 'wadah' || body.seed?.user_data !== undefined, '/seed/kind', 'It is told who it is by its host.'],
    [body.tpm === true, '/tpm', 'The template has no TPM.'],
    [(body.hostdevs ?? []).length > 0, '/hostdevs', 'The template has no devices of the host.'],
    [(body.serial_ports ?? 1) !== 1, '/serial_ports', 'The template has one serial port.'],
    [body.nics !== undefined && body.nics.length !== 1, '/nics', 'The template has one NIC.'],
    [(body.nics?.[0]?.name ?? TEMPLATE_NIC) !== TEMPLATE_NIC, '/nics/0/name', `Its NIC is called "${TEMPLATE_NIC}".`],
  ]
  for (const [wrong, field, why] of given) if (wrong) throw no(why, field, again)
  return warm
}

/** Where the address of a clone can be said before it is there. */
export function checkInstantNetwork(network: NetworkRecord | undefined): void {
  if (network?.kind === 'nat' || network?.kind === 'user') return
  throw fail(
    'invalid',
    `On the network "${network?.name}" somebody else gives out addresses; an instant clone must know its own.`,
    {
      field: '/nics/0/network',
      remedy: 'a network of kind "nat" or "user", or leave out --instant',
    },
  )
}
