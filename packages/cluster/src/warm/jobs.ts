/** Warming an image, letting it cool, and the start of a clone. docs/instant-clones.md. */
import { fail } from '@wadah/api/fault'
import type { LaunchRequest } from '@wadah/ports/machine'
import type { WarmState } from '@wadah/ports/warm'
import { type Write, del, put, unchanged } from '@wadah/store/store'
import { type Deps, forward, caughtUp } from '../context.ts'
import { type StepContext, defineJob, pivot, step } from '../jobs/define.ts'
import { type ImageRecord, imageKind, indexKeys, indexKind, volumeKind, vmKind } from '../records.ts'
import { chainOf, poolDefinition, poolOf, volumeDefinition } from '../resolve.ts'
import { dropFile, storedVolume, volumeGone } from '../storage/gone.ts'
import { makeVolume } from '../vms/jobs.ts'
import { TEMPLATE_DISK, TEMPLATE_NIC } from './admit.ts'

export type WarmParams = {
  image: string
  name: string
  /** The throw-away VM; its user. */
  vm: string
  uid: number
  mac: string
  cpus: number
  memory_mib: number
  /** The layer with what the template wrote, on top of the image's disk. */
  volume?: string
}
export type UnwarmParams = { image: string; name: string; warm: NonNullable<ImageRecord['warm']> }
type Ctx<P> = StepContext<P, Deps>

async function imageOf(deps: Deps, id: string) {
  const rec = await deps.store.get(imageKind, id)
  if (!rec) throw fail('gone', 'The image is not there any more.')
  await caughtUp(deps)
  return rec
}

/** What the template is: one NIC that leads nowhere, and no seed: there is no secret it could know. */
export function templateRequest(deps: Pick<Deps, 'view'>, image: ImageRecord, p: WarmParams): LaunchRequest {
  const network = { id: 'net-template00', name: 'none', kind: 'user' as const }
  const chain = p.volume === undefined ? undefined : chainOf(deps, p.volume)
  const kernel = image.kind === 'kernel'
  const cmdline = `${image.cmdline ?? ''} wadah.hostname=template`.trim()
  return {
    vm: p.vm,
    name: `template-${image.name}`.slice(0, 63),
    epoch: 1,
    spec: {
      cpus: p.cpus,
      memory_mib: p.memory_mib,
      machine: 'q35',
      boot: kernel ? { kind: 'kernel', image: image.id, cmdline } : { kind: 'disk' },
      disks: p.volume === undefined ? [] : [{ name: TEMPLATE_DISK, volume: p.volume, limits: {} }],
      nics: [{ name: TEMPLATE_NIC, network: network.id, mac: p.mac, publish: [], limits: {} }],
      limits: {},
      balloon_mib: null,
      seed: { hostname: 'template', has_password: false, ssh_keys: [] },
      uid: p.uid,
    },
    disks: chain
      ? [
          {
            name: TEMPLATE_DISK,
            chain: chain.map((v) => volumeDefinition(deps, v)),
            pool: poolDefinition(poolOf(deps, chain[0]?.pool ?? '')),
          },
        ]
      : [],
    nics: [
      {
        name: TEMPLATE_NIC,
        network,
        attachment: {
          vm: p.vm,
          vm_name: 'template',
          nic: TEMPLATE_NIC,
          network: network.id,
          uid: p.uid,
          mac: p.mac,
          publish: [],
          limits: {},
        },
      },
    ],
    ...(kernel ? { kernel: { image: image.id, cmdline, has_initrd: image.has_initrd } } : {}),
    seed: {},
  }
}

/** Whatever there is of it. */
async function dropTemplate({ deps, params: p }: Ctx<WarmParams>): Promise<void> {
  await deps.machine.forget(p.vm)
  await deps.machine.warm.drop(p.image)
  const volume = await storedVolume(deps, p.volume)
  if (volume) await dropFile(deps, volume)
}

export const warmImage = defineJob<WarmParams, Deps>(
  'image.warm',
  1,
  (value) => {
    const p = value as WarmParams
    if (typeof p?.image !== 'string' || typeof p.vm !== 'string') throw fail('invalid', 'The job has no image.')
    return p
  },
  [
    // Its records were committed together with the job; this step is the way back.
    step('reserve', {
      do: () => undefined,
      undo: async (ctx) => {
        const { deps, params: p } = ctx
        const volume = await storedVolume(deps, p.volume)
        ctx.commit([...(volume ? volumeGone(volume) : []), del(indexKind, indexKeys.uid(p.uid))])
      },
      volatile: true,
      weight: 0.1,
    }),
    step<WarmParams, Deps, WarmState>('boot', {
      do: async (ctx) => {
        const { deps, params: p, signal } = ctx
        const { value: image } = await imageOf(deps, p.image)
        // What a try that was cut off wrote is of no use: from the start.
        await dropTemplate(ctx)
        const volume = p.volume === undefined ? undefined : deps.view.get(volumeKind, p.volume)?.value
        if (volume && image.volume !== undefined)
          await makeVolume(ctx, volume, { volume: image.volume, how: 'linked' }, { uid: p.uid }, () => undefined)
        return deps.machine.warm.make(p.image, templateRequest(deps, image, p), signal, (line) => ctx.log(line))
      },
      undo: dropTemplate,
      weight: 10,
    }),
    step('record', {
      do: async (ctx) => {
        const { deps, params: p } = ctx
        const image = await imageOf(deps, p.image)
        const { boot, qemu_version, ram_bytes } = ctx.output<WarmState>('boot') as WarmState
        const writes: Write[] = []
        const volume = p.volume === undefined ? undefined : deps.view.get(volumeKind, p.volume)?.value
        if (volume) {
          const pool = poolDefinition(poolOf(deps, volume.pool))
          await deps.machine.volumes.grant(pool, volumeDefinition(deps, volume), 'read-only')
          const held_bytes = await deps.machine.volumes.allocatedBytes(pool, volume)
          const { making: _, ...made } = volume
          writes.push(put(volumeKind, volume.id, { ...made, held_bytes }))
        }
        const warm: NonNullable<ImageRecord['warm']> = {
          cpus: p.cpus,
          memory_mib: p.memory_mib,
          ram_bytes,
          made_at: new Date(deps.clock.now_ms()).toISOString(),
          qemu_version,
          accelerator: boot.accelerator,
          boot,
          ...(p.volume === undefined ? {} : { volume: p.volume }),
        }
        writes.push(put(imageKind, p.image, { ...image.value, warm }), del(indexKind, indexKeys.uid(p.uid)))
        ctx.commit(writes, [unchanged(image)])
      },
      undo: async (ctx) => {
        const image = (await ctx.deps.store.get(imageKind, ctx.params.image))?.value
        if (!image?.warm) return
        const { warm: _, ...cold } = image
        ctx.commit([put(imageKind, image.id, cold)])
      },
      weight: 0.1,
    }),
  ],
  {
    claims: (p) => [`image/${p.image}`],
    lane: 'build',
    result: (output, p) => ({
      image: p.image,
      name: p.name,
      ram_bytes: (output('boot') as WarmState | undefined)?.ram_bytes ?? 0,
    }),
  },
)

/** Disks that stand on the template's. */
export function clonesOf(deps: Pick<Deps, 'view'>, warm: NonNullable<ImageRecord['warm']>): string[] {
  if (warm.volume === undefined) return []
  return deps.view.list(volumeKind).flatMap(({ value: v }) => {
    if (v.base !== warm.volume) return []
    return [(v.vm === undefined ? undefined : deps.view.get(vmKind, v.vm)?.value.name) ?? v.name]
  })
}

export const unwarmImage = defineJob<UnwarmParams, Deps>(
  'image.unwarm',
  1,
  (value) => value as UnwarmParams,
  [
    // The record says since the job was asked for that it is not warm: who was quicker with a clone is looked for after.
    step('look', {
      do: async ({ deps, params: p }) => {
        await imageOf(deps, p.image)
        const users = clonesOf(deps, p.warm)
        if (users.length > 0) throw inUse(p.name, users)
      },
      undo: async (ctx) => {
        const image = (await ctx.deps.store.get(imageKind, ctx.params.image))?.value
        if (image) ctx.commit([put(imageKind, image.id, { ...image, warm: ctx.params.warm })])
      },
      volatile: true,
    }),
    pivot('files', {
      do: async ({ deps, params: p }) => {
        const volume = await storedVolume(deps, p.warm.volume)
        await forward(async () => {
          await deps.machine.warm.drop(p.image)
          if (volume) await dropFile(deps, volume)
        })
      },
    }),
    step('records', {
      do: async (ctx) => {
        const volume = await storedVolume(ctx.deps, ctx.params.warm.volume)
        if (volume) ctx.commit(volumeGone(volume))
      },
    }),
  ],
  { claims: (p) => [`image/${p.image}`], result: (_output, p) => ({ image: p.image, name: p.name }) },
)

export function inUse(image: string, users: readonly string[]): Error {
  return fail('in_use', `Instant clones stand on the template of "${image}": ${users.slice(0, 5).join(', ')}.`, {
    remedy: `wadah vm list --image ${image}`,
  })
}
