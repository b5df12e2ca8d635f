/** Images: read-only templates that VMs are cloned from. */
import { fail } from '@wadah/api/fault'
import { newId } from '@wadah/api/ids'
import type { Job } from '@wadah/api/schema/job'
import type { VmSpec } from '@wadah/api/schema/vm'
import type { Image, ImageBuild, Recipe } from '@wadah/api/schema/storage'
import { type Rec, absent, exists, put, unchanged } from '@wadah/store/store'
import { type Deps, checkGeneration, commit, find, indexConflict, made, page } from '../context.ts'
import type { JobEngine } from '../jobs/engine.ts'
import { claimKind } from '../jobs/record.ts'
import {
  type ImageRecord,
  type VmRecord,
  imageKind,
  imageLayers,
  indexKeys,
  indexKind,
  snapshotKind,
  vmKind,
  volumeKind,
} from '../records.ts'
import type { Caller, IfGeneration, ImageService, ListQuery, PageOf } from '../services.ts'
import { submit } from '../submit.ts'
import { findPool } from '../storage/find-pool.ts'
import { checkName, poolClosing, readerOf } from '../vms/create.ts'
import { buildImage, deleteImage } from './jobs.ts'

export class ImageStore implements ImageService {
  readonly #deps: Deps
  readonly #engine: JobEngine<Deps>

  constructor(deps: Deps, engine: JobEngine<Deps>) {
    this.#deps = deps
    this.#engine = engine
  }

  list(caller: Caller, q: ListQuery): PageOf<Image> {
    const mine = this.#deps.view.list(imageKind).filter((i) => i.value.project === caller.project)
    const { items, next } = page(mine, (rec) => rec.id, q)
    return { items: items.map((rec) => this.#view(rec, false)), ...(next === undefined ? {} : { next }) }
  }

  get(caller: Caller, ref: string): Image {
    return this.#view(find(this.#deps, 'image', imageKind, caller.project, ref), true)
  }

  #users(image: ImageRecord): string[] {
    const { view } = this.#deps
    const own = new Set(imageLayers(image))
    // One pass for all VMs: there may be thousands. Between a disk and the image layers of snapshots may lie.
    const standing = new Set<string>()
    const clones: string[] = []
    for (const { id, value: v } of view.list(volumeKind)) {
      const onIt = v.base !== undefined && own.has(v.base)
      // While it is made, a full clone reads the image; after, it remembers where it came from and stands by itself.
      if (v.vm !== undefined && (onIt || (v.making === true && v.base === undefined && !v.role))) standing.add(v.vm)
      if (v.vm === undefined && onIt && !own.has(id)) clones.push(v.name)
    }
    const takes = ({ boot, cdroms }: Pick<VmSpec, 'boot' | 'cdroms'>) =>
      (boot.kind === 'kernel' && boot.image === image.id) || cdroms?.some((c) => c.image === image.id) === true
    const needs = ({ id, value: { spec } }: Rec<VmRecord>) =>
      takes(spec) || (spec.image === image.id && (spec.boot.kind === 'kernel' || standing.has(id)))
    return [
      ...view
        .list(vmKind)
        .filter(needs)
        .map((vm) => vm.value.name),
      ...clones,
      // What a VM may be reverted to.
      ...view
        .list(snapshotKind)
        .filter((s) => takes(s.value.spec))
        .map((s) => s.value.name),
    ]
  }

  #view(rec: Rec<ImageRecord>, detail: boolean): Image {
    const { value: i } = rec
    return {
      id: i.id,
      name: i.name,
      project: i.project,
      generation: rec.version,
      created_at: i.created_at,
      kind: i.kind,
      ready: i.ready,
      description: i.description,
      ...(i.recipe === undefined ? {} : { recipe: i.recipe }),
      ...(i.volume === undefined ? {} : { volume: i.volume }),
      size_bytes: i.size_bytes,
      ...(i.cmdline === undefined ? {} : { cmdline: i.cmdline }),
      ...(i.kernel_version === undefined ? {} : { kernel_version: i.kernel_version }),
      min_memory_mib: i.min_memory_mib,
      agent: i.agent,
      ...(i.service === undefined ? {} : { service: i.service }),
      ...(i.sha256 === undefined ? {} : { sha256: i.sha256 }),
      ...(detail && i.packages !== undefined ? { packages: i.packages } : {}),
      ...(i.more_volumes === undefined ? {} : { more_volumes: i.more_volumes }),
      ...(i.hardware === undefined ? {} : { hardware: i.hardware }),
      ...(i.seed === undefined ? {} : { seed: i.seed }),
      ...(i.source === undefined ? {} : { source: i.source }),
      ...(i.notes === undefined ? {} : { notes: i.notes }),
      ...(i.warm === undefined ? {} : { warm: viewWarm(i.warm) }),
      used_by: this.#users(i).length,
    }
  }

  recipes(): Promise<Recipe[]> {
    return this.#deps.machine.images.recipes()
  }

  #record(caller: Caller, name: string, kind: ImageRecord['kind'], more: Partial<ImageRecord> = {}): ImageRecord {
    const deps = this.#deps
    return {
      schema: 1,
      id: newId('image', deps.randomBytes),
      name,
      project: caller.project,
      created_at: new Date(deps.clock.now_ms()).toISOString(),
      kind,
      description: '',
      size_bytes: 0,
      min_memory_mib: 64,
      agent: false,
      ready: false,
      has_kernel: false,
      has_initrd: false,
      host: deps.hostId,
      ...more,
    }
  }

  async build(caller: Caller, body: ImageBuild): Promise<Job> {
    const deps = this.#deps
    const name = body.name ?? body.recipe
    checkName(deps, 'image', caller.project, name)
    const pool = findPool(deps, caller.project, body.pool, '/pool')
    if (pool.value.closing) throw poolClosing(pool.value)
    await deps.machine.images.checkRecipe(body.recipe)
    const image = this.#record(caller, name, 'disk', { recipe: body.recipe })
    const key = indexKeys.name('image', caller.project, name)
    const params = {
      image: image.id,
      name,
      recipe: body.recipe,
      pool: pool.id,
      volume: newId('volume', deps.randomBytes),
      refresh: body.refresh ?? false,
    }
    return submit(
      deps,
      this.#engine,
      caller,
      buildImage,
      params,
      { kind: 'image', id: image.id, name },
      {
        checks: [absent(indexKind, key), unchanged(pool)],
        writes: [put(imageKind, image.id, image), put(indexKind, key, { schema: 1, holder: image.id })],
      },
    )
  }

  async createKernel(
    caller: Caller,
    body: { name: string; description?: string; cmdline?: string; min_memory_mib?: number },
  ): Promise<Image> {
    const deps = this.#deps
    checkName(deps, 'image', caller.project, body.name)
    return this.#createEmpty(
      caller,
      this.#record(caller, body.name, 'kernel', {
        description: body.description ?? '',
        cmdline: body.cmdline ?? 'console=ttyS0',
        min_memory_mib: body.min_memory_mib ?? 64,
      }),
    )
  }

  async createIso(caller: Caller, body: { name: string; description?: string }): Promise<Image> {
    checkName(this.#deps, 'image', caller.project, body.name)
    const more = { description: body.description ?? '', min_memory_mib: 16 }
    return this.#createEmpty(caller, this.#record(caller, body.name, 'iso', more))
  }

  /** Its files are uploaded later. */
  async #createEmpty(caller: Caller, image: ImageRecord): Promise<Image> {
    const deps = this.#deps
    const key = indexKeys.name('image', caller.project, image.name)
    await commit(
      deps,
      [absent(indexKind, key)],
      [put(imageKind, image.id, image), put(indexKind, key, { schema: 1, holder: image.id })],
      indexConflict,
    )
    return made(() => this.get(caller, image.id))
  }

  async upload(
    caller: Caller,
    ref: string,
    file: 'kernel' | 'initrd' | 'iso',
    data: AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<void> {
    const deps = this.#deps
    const rec = find(deps, 'image', imageKind, caller.project, ref)
    const { value: image } = rec
    const takes = image.recipe !== undefined ? [] : { kernel: ['kernel', 'initrd'], iso: ['iso'], disk: [] }[image.kind]
    if (!takes.includes(file)) {
      throw fail('wrong_state', `"${image.name}" is not an image whose ${file} is uploaded.`, {
        remedy: `wadah image add NAME --${file === 'iso' ? 'iso' : 'kernel'} FILE`,
      })
    }
    if (this.#users(image).length > 0)
      throw fail('in_use', `VMs stand on "${image.name}": ${this.#users(image).slice(0, 3).join(', ')}.`)
    this.#refuseBusy(image)
    const { sha256 } = await deps.machine.images.putFile(image.id, file, data, signal)
    const files = await deps.machine.images.files(image.id)
    this.#refuseBusy(image)
    const again = find(deps, 'image', imageKind, caller.project, image.id)
    await commit(
      deps,
      [unchanged(again)],
      [
        put(imageKind, image.id, {
          ...again.value,
          has_kernel: files.kernel !== undefined,
          has_initrd: files.initrd !== undefined,
          size_bytes: files.size_bytes,
          ready: image.kind === 'iso' ? files.iso !== undefined : files.kernel !== undefined,
          ...(file === 'iso' ? { sha256 } : {}),
        } satisfies ImageRecord),
      ],
    )
  }

  #refuseBusy(image: ImageRecord): void {
    const claim = this.#deps.view.get(claimKind, `image/${image.id}`)?.value
    if (claim)
      throw fail('busy', `The job ${claim.job} (${claim.name}) is at work on "${image.name}".`, {
        remedy: `wadah job cancel ${claim.job}`,
      })
    const reader = imageLayers(image)
      .map((id) => readerOf(this.#deps, id))
      .find((job) => job !== undefined)
    if (reader !== undefined)
      throw fail('busy', `The disk of "${image.name}" is being copied.`, { remedy: `wadah job wait ${reader}` })
  }

  async delete(caller: Caller, ref: string, generation: IfGeneration): Promise<Job> {
    const deps = this.#deps
    const rec = find(deps, 'image', imageKind, caller.project, ref)
    checkGeneration(rec, generation)
    const { value: image } = rec
    this.#refuseBusy(image)
    const refuse = () => {
      const users = this.#users(image)
      if (users.length > 0) {
        throw fail(
          'in_use',
          `${users.length} VMs or volumes stand on "${image.name}": ${users.slice(0, 5).join(', ')}${users.length > 5 ? ', …' : ''}.`,
          {
            remedy: `wadah vm list --image ${image.name}`,
          },
        )
      }
    }
    refuse()
    // First it can no longer be used, then who was quicker is looked for, then it goes.
    await commit(deps, [unchanged(rec)], [put(imageKind, image.id, { ...image, ready: false })])
    try {
      refuse()
      this.#refuseBusy(image)
      return await submit(
        deps,
        this.#engine,
        caller,
        deleteImage,
        { image: image.id, name: image.name },
        { kind: 'image', id: image.id, name: image.name },
      )
    } catch (error) {
      await commit(deps, [exists(imageKind, image.id)], [put(imageKind, image.id, image)])
      throw error
    }
  }
}

function viewWarm({
  boot: _boot,
  volume: _volume,
  ...warm
}: NonNullable<ImageRecord['warm']>): NonNullable<Image['warm']> {
  return warm
}
