/** Warm images: what is refused is refused before anything is written. */
import { newId } from '@wadah/api/ids'
import { fail } from '@wadah/api/fault'
import type { Job } from '@wadah/api/schema/job'
import type { ImageWarm } from '@wadah/api/schema/storage'
import { type Rec, absent, put, unchanged } from '@wadah/store/store'
import { type Deps, find } from '../context.ts'
import type { JobEngine } from '../jobs/engine.ts'
import {
  type ImageRecord,
  type VolumeRecord,
  imageKind,
  indexKeys,
  indexKind,
  poolKind,
  volumeKind,
} from '../records.ts'
import type { Pending } from '../pending.ts'
import type { Caller } from '../services.ts'
import { submit } from '../submit.ts'
import { freeMac } from '../vms/allocate.ts'
import { newUid } from '../vms/uids.ts'
import { admitVolumes, checkMemory, volumeName } from '../vms/create.ts'
import { checkWarmable } from './admit.ts'
import { type WarmParams, clonesOf, inUse, unwarmImage, warmImage } from './jobs.ts'

export class WarmImages {
  readonly #deps: Deps
  readonly #engine: JobEngine<Deps>
  readonly #pending: Pending
  constructor(deps: Deps, engine: JobEngine<Deps>, pending: Pending) {
    this.#deps = deps
    this.#engine = engine
    this.#pending = pending
  }

  async warm(caller: Caller, ref: string, body: ImageWarm): Promise<Job> {
    const rec = find(this.#deps, 'image', imageKind, caller.project, ref)
    checkWarmable(rec.value)
    const { params, ...extra } = await this.#pending.alone(() => this.#plan(rec, body))
    return submit(this.#deps, this.#engine, caller, warmImage, params, target(rec.value), extra)
  }

  async #plan({ value: image, ...rec }: Rec<ImageRecord>, body: ImageWarm) {
    const deps = this.#deps
    const { view } = deps
    const memory_mib = body.memory_mib ?? Math.max(image.kind === 'kernel' ? 0 : 512, image.min_memory_mib)
    if (memory_mib < image.min_memory_mib)
      throw fail('invalid', `The image "${image.name}" needs at least ${image.min_memory_mib} MiB.`, {
        field: '/memory_mib',
      })
    checkMemory(deps, memory_mib)
    const used = (key: string) => view.get(indexKind, key) !== undefined || this.#pending.has(key)
    const uid = newUid(deps, this.#pending)
    const vm = newId('vm', deps.randomBytes)
    const base = image.volume === undefined ? undefined : view.get(volumeKind, image.volume)
    const volume = base && this.#layer(image, base.value)
    if (volume) await admitVolumes(deps, this.#pending, [volume], '/image')
    const key = volume && indexKeys.name('volume', volume.project, volume.name)
    const pool = volume && view.get(poolKind, volume.pool)
    const params: WarmParams = {
      image: image.id,
      name: image.name,
      vm,
      uid,
      mac: freeMac((m) => used(indexKeys.mac(m)), deps.randomBytes),
      cpus: body.cpus ?? 1,
      memory_mib,
      ...(volume ? { volume: volume.id } : {}),
    }
    const keys = [indexKeys.uid(uid), ...(key === undefined ? [] : [key])]
    return {
      params,
      checks: [
        unchanged({ value: image, ...rec }),
        ...keys.map((k) => absent(indexKind, k)),
        ...(base ? [unchanged(base)] : []),
        ...(pool ? [unchanged(pool)] : []),
      ],
      writes: [
        put(indexKind, indexKeys.uid(uid), { schema: 1, holder: vm }),
        ...(volume && key !== undefined
          ? [put(volumeKind, volume.id, volume), put(indexKind, key, { schema: 1, holder: volume.id })]
          : []),
      ],
      release: this.#pending.take(keys, volume ? [[`promised/${volume.pool}`, volume.size_bytes] as const] : []),
    }
  }

  /** What the template writes; clones stand on it. */
  #layer(image: ImageRecord, base: VolumeRecord): VolumeRecord {
    const deps = this.#deps
    const id = newId('volume', deps.randomBytes)
    return {
      schema: 1,
      id,
      name: volumeName(deps, this.#pending, image.project, `image-${image.name}`, 'warm', id),
      project: image.project,
      created_at: new Date(deps.clock.now_ms()).toISOString(),
      pool: base.pool,
      format: 'qcow2',
      size_bytes: base.size_bytes,
      base: base.id,
      image: image.id,
      read_only: true,
      making: true,
    }
  }

  async unwarm(caller: Caller, ref: string): Promise<Job> {
    const rec = find(this.#deps, 'image', imageKind, caller.project, ref)
    const { warm, ...image } = rec.value
    if (!warm) throw fail('wrong_state', `The image "${image.name}" is not warm.`, { field: '/image' })
    const users = clonesOf(this.#deps, warm)
    if (users.length > 0) throw inUse(image.name, users)
    const params = { image: image.id, name: image.name, warm }
    return submit(this.#deps, this.#engine, caller, unwarmImage, params, target(image), {
      checks: [unchanged(rec)],
      writes: [put(imageKind, image.id, image)],
    })
  }
}

function target(image: { id: string; name: string }) {
  return { kind: 'image', id: image.id, name: image.name }
}
