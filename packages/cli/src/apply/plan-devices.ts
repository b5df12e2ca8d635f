/** How the disks and NICs of a VM differ from what is wanted. Pure. */
import type { Path } from './check.ts'
import type { Disk, Nic, NicInput, PublishInput, Vm } from '@wadah/api/schema/vm'
import type { Current, Draft } from './plan.ts'

type Fields = Record<string, unknown>

/** The names the daemon would give to entries without one. */
function named<T extends { name?: string }>(
  inputs: readonly T[],
  stem: string,
  taken: readonly string[],
  first = 1,
): (T & { name: string })[] {
  const out: (T & { name: string })[] = []
  for (const input of inputs) {
    const used = [...taken, ...out.map((o) => o.name)]
    let n = first
    while (used.includes(`${stem}${n}`)) n += 1
    out.push({ ...input, name: input.name ?? `${stem}${n}` })
  }
  return out
}

/** Limits that differ; `null` stands for none. */
function limitsDiff(now: object, wanted: unknown): Fields | undefined {
  const differing = Object.entries((wanted ?? {}) as Fields).filter(([k, v]) => ((now as Fields)[k] ?? null) !== v)
  return differing.length === 0 ? undefined : Object.fromEntries(differing)
}

/** A disk becomes larger, also while the VM runs; never smaller. */
export function growTo(path: Path, disk: Disk | undefined, size_mib: number, current: Current, d: Draft): void {
  const volume = current.volumes.find((v) => v.id === disk?.volume)
  if (!disk || !volume) return
  const now = volume.size_bytes / 2 ** 20
  if (size_mib < now) d.refuse(path, `the disk "${disk.name}" has ${now} MiB, and no disk becomes smaller`)
  if (size_mib <= now) return
  d.grow.push({ volume: volume.id, size_mib })
  d.changes.push({ field: `disks/${disk.name}/size_mib`, from: now, to: size_mib })
}

/** Disks beside the first, `root`, which comes from the image. */
export function diffDisks(inputs: readonly Fields[], vm: Vm, current: Current, d: Draft): void {
  const wanted = named(inputs as { name?: string }[], 'disk', ['root']) as (Fields & { name: string })[]
  const edits: Fields[] = []
  const adds: Fields[] = []
  for (const [i, w] of wanted.entries()) {
    const disk = vm.spec.disks.find((x) => x.name === w.name)
    if (!disk) {
      adds.push(w)
      d.changes.push({ field: `disks/${w.name}`, from: undefined, to: w })
      continue
    }
    const volume = current.volumes.find((v) => v.id === disk.volume)
    const pool = current.pools.find((p) => p.id === volume?.pool)
    const differs = (field: string, now: unknown[], value: unknown) => {
      if (value !== undefined && volume !== undefined && !now.includes(value))
        d.refuse(
          ['disks', i, field],
          `the disk "${w.name}" has ${String(now[0])}, which cannot be changed`,
          `wadah vm edit ${vm.name} --remove-disk ${w.name}`,
        )
    }
    if (w['size_mib'] !== undefined) growTo(['disks', i, 'size'], disk, w['size_mib'] as number, current, d)
    differs('format', [volume?.format], w['format'])
    differs('pool', [pool?.name, pool?.id], w['pool'])
    differs('volume', [volume?.name, volume?.id], w['volume'])
    const limits = limitsDiff(disk.limits, w['limits'])
    if (!limits) continue
    edits.push({ name: w.name, limits })
    d.changes.push({ field: `disks/${w.name}/limits`, from: disk.limits, to: limits })
  }
  const gone = vm.spec.disks.filter((x) => x.name !== 'root' && !wanted.some((w) => w.name === x.name))
  for (const disk of gone)
    d.changes.push({ field: `disks/${disk.name}`, from: 'attached', to: 'taken away; its volume is kept' })
  if (edits.length > 0) d.body['disks'] = edits
  if (adds.length > 0) d.body['add_disks'] = adds
  if (gone.length > 0) {
    d.body['remove_disks'] = gone.map((x) => x.name)
  }
}

export function diffNics(inputs: readonly Fields[], vm: Vm, current: Current, d: Draft): void {
  const wanted = named(inputs as NicInput[], 'net', [])
  const edits: Fields[] = []
  const adds: Fields[] = []
  const gone: Nic[] = []
  for (const w of wanted) {
    const nic = vm.spec.nics.find((n) => n.name === w.name)
    const network = current.networks.find((n) => n.id === nic?.network)
    const other =
      nic &&
      ((w.network !== undefined && w.network !== network?.name && w.network !== nic.network) ||
        (w.mac !== undefined && w.mac !== nic.mac))
    if (!nic || other) {
      if (nic) gone.push(nic)
      adds.push(w)
      d.changes.push({ field: `nics/${w.name}`, from: nic && { network: network?.name, mac: nic.mac }, to: w })
      continue
    }
    const change: Fields = {}
    if (w.address !== undefined && w.address !== nic.address) {
      change['address'] = w.address
      d.later.push('nics')
    }
    if (w.publish && !samePublished(w.publish, nic)) change['publish'] = w.publish
    const limits = limitsDiff(nic.limits, w.limits)
    if (limits) change['limits'] = limits
    if (Object.keys(change).length === 0) continue
    edits.push({ name: w.name, ...change })
    for (const [field, to] of Object.entries(change))
      d.changes.push({ field: `nics/${w.name}/${field}`, from: (nic as unknown as Fields)[field], to })
  }
  for (const nic of vm.spec.nics) {
    if (wanted.some((w) => w.name === nic.name)) continue
    gone.push(nic)
    d.changes.push({ field: `nics/${nic.name}`, from: 'there', to: 'taken away' })
  }
  if (edits.length > 0) d.body['nics'] = edits
  if (adds.length > 0) d.body['add_nics'] = adds
  if (gone.length > 0) d.body['remove_nics'] = gone.map((n) => n.name)
}

/** Where no address is said the daemon has chosen one: any is right. */
function samePublished(wanted: readonly PublishInput[], nic: Nic): boolean {
  return (
    wanted.length === nic.publish.length &&
    wanted.every((w) =>
      nic.publish.some(
        (p) =>
          p.protocol === (w.protocol ?? 'tcp') &&
          p.port === w.port &&
          p.to === w.to &&
          (w.address === undefined || w.address === p.address),
      ),
    )
  )
}

/** What lies in a drive is put in and taken out by hand, also while it runs: a file says it for a new drive only. */
export function diffCdroms(inputs: readonly Fields[], vm: Vm, current: Current, d: Draft): void {
  const there = vm.spec.cdroms ?? []
  const disks = vm.spec.disks.map((x) => x.name)
  const wanted = named(inputs as { name?: string }[], 'cd', disks, 0) as (Fields & { name: string })[]
  const adds = wanted.filter((w) => !there.some((c) => c.name === w.name))
  const gone = there.filter((c) => !wanted.some((w) => w.name === c.name))
  for (const [i, w] of wanted.entries()) {
    const drive = there.find((c) => c.name === w.name)
    const image = current.images.find((x) => x.id === drive?.image)
    if (!drive || w['image'] === undefined || w['image'] === drive.image || w['image'] === image?.name) continue
    const has = image === undefined ? 'it is empty' : `"${image.name}" lies in it`
    d.refuse(['cdroms', i, 'image'], `${has}`, `wadah vm insert ${vm.name} ${w['image'] as string}`)
  }
  for (const w of adds) d.changes.push({ field: `cdroms/${w.name}`, from: undefined, to: w })
  for (const c of gone) d.changes.push({ field: `cdroms/${c.name}`, from: 'there', to: 'taken away' })
  if (adds.length + gone.length > 0) d.later.push('cdroms')
  if (adds.length > 0) d.body['add_cdroms'] = adds
  if (gone.length > 0) {
    d.body['remove_cdroms'] = gone.map((c) => c.name)
    d.stop = true
  }
}
