/**
 * The target's side of a stopped VM's move: its disks are copied out of streams that the source opens, its own files come with the offer. Until the
 * commit that makes the VM this host's, all of it may go again at any moment: it does when the source gives up, goes away or says nothing.
 */
import { fail } from '@wadah/api/fault'
import { isId } from '@wadah/api/ids'
import type { BringOffer } from '@wadah/ports/migration'
import type { ByteStream } from '@wadah/ports/volumes'
import type { Deps } from '../context.ts'
import { MOVE_PROTOCOL, type MessageLink } from '../migration/link.ts'
import { pausePoint } from '../migration/pause-point.ts'
import { LONGEST_MS, type Of, Talk } from '../migration/talk.ts'
import type { Turns } from '../migration/turns.ts'
import { refusalOf } from '../migration/target.ts'
import { snapshotKind, type VmRecord } from '../records.ts'
import { comesHere, isBy, isStopped } from './arrive.ts'
import { alone, dropArrival, layerBytes, type Room, roomsFor } from './local-disks.ts'
import { watched } from './still.ts'

const OFFER_MS = 30_000
/** Until the source has a disk open and its stream is there. */
const STREAM_MS = 120_000
/** A disk there that has to be woken, or a file system that hangs, takes minutes. */
const STILL_MS = 600_000
/** Files take whole clusters, and tables. */
const SLACK_BYTES = 64 * 2 ** 20

type Waiting = { host: string } & PromiseWithResolvers<ByteStream>
type UnderWay = { stop: AbortController; over: Promise<unknown> }

export class Bringings {
  readonly #deps: Deps
  readonly #stop: AbortSignal
  readonly #turns: Turns
  /** By VM: one at a time. */
  readonly #underWay = new Map<string, UnderWay>()
  /** `job/volume` of disks whose stream has not come yet. */
  readonly #waiting = new Map<string, Waiting>()

  /** @param turns how many come at a time, with those that run */
  constructor(deps: Deps, stop: AbortSignal, turns: Turns) {
    this.#deps = deps
    this.#stop = stop
    this.#turns = turns
  }

  /** A stream that another daemon opened for a volume. @throws WadahError `not_found`: nobody waits for it */
  take(job: string, volume: string, host: string): (stream: ByteStream) => void {
    const key = `${job}/${volume}`
    const waiting = this.#waiting.get(key)
    if (waiting?.host !== host) throw fail('not_found', 'Nobody waits for this volume here.')
    this.#waiting.delete(key)
    return waiting.resolve
  }

  /** A stream on which a source says what comes; `from`: its host, as proved. Resolves when there is no more to be done on it. */
  async handle(link: MessageLink, from: string): Promise<void> {
    const talk = new Talk(link, () => Date.now())
    let first: Of<'bring'>
    try {
      first = await talk.next(['bring'], OFFER_MS, this.#stop)
    } catch {
      return talk.close()
    }
    const { job } = first
    try {
      talk.beat()
      const vm = await this.#expected(first, from)
      // A source that begins anew has nothing to do with what it began before.
      for (let before = this.#underWay.get(vm.id); before; before = this.#underWay.get(vm.id)) {
        before.stop.abort(fail('cancelled', 'The source begins anew.'))
        await before.over
      }
      const stop = new AbortController()
      const work = this.#inTurn(first, vm, from, talk, stop)
      const over = work.catch(() => undefined).finally(() => this.#underWay.delete(vm.id))
      this.#underWay.set(vm.id, { stop, over })
      await work
      await over
      talk.send({ type: 'brought', job })
    } catch (error) {
      this.#deps.log(`${String(first.bring?.vm).slice(0, 40)}: not brought: ${(error as Error).message}`)
      talk.send({ type: 'abort', job, fault: refusalOf(error) })
    }
    talk.close()
  }

  /** @throws what the source is to be told */
  async #expected({ job, version, bring }: Of<'bring'>, from: string): Promise<VmRecord> {
    if (version !== MOVE_PROTOCOL)
      throw fail('host_lacks', `Moves are spoken in version ${MOVE_PROTOCOL} here, and in version ${version} there.`, {
        remedy: 'upgrade the older host',
      })
    if (!isId(job) || !isId(bring?.vm) || !Array.isArray(bring.disks) || typeof bring.state !== 'object')
      throw fail('malformed', 'This is no offer of a stopped VM.')
    if (!(await isBy(this.#deps, job, from)))
      throw fail('not_owner', 'This move is carried out by another host than the one that asks.')
    return comesHere(this.#deps, job, bring.vm, bring.epoch)
  }

  async #inTurn(first: Of<'bring'>, vm: VmRecord, from: string, talk: Talk, stop: AbortController): Promise<void> {
    const limit = AbortSignal.any([this.#stop, talk.lost, stop.signal])
    // Nothing but an `abort` is said on it from now on.
    talk.next(['done'], LONGEST_MS, limit).catch((error: unknown) => stop.abort(error))
    // One of the release before does not know `wait`, and takes it for silence.
    const leave = first.bring.waits === true ? await this.#turns.take(talk, first.job, limit) : () => {}
    try {
      await this.#bring(first, vm, from, talk, stop, limit)
    } finally {
      leave()
    }
  }

  async #bring(
    { job, bring }: Of<'bring'>,
    vm: VmRecord,
    from: string,
    talk: Talk,
    stop: AbortController,
    limit: AbortSignal,
  ): Promise<void> {
    const { machine } = this.#deps
    // Of one that runs QEMU brings the disks, and what is the machine's own; here only what they stand on.
    const rests = isStopped(this.#deps, job)
    if (rests) await checkHost(this.#deps, vm)
    const all = await roomsFor(this.#deps, vm, job)
    const rooms = rests ? all : all.filter((r) => r.held)
    checkDisks(rooms, bring)
    const keys = rooms.map((r) => `${job}/${r.volume.id}`)
    for (const key of keys) this.#waiting.set(key, { host: from, ...Promise.withResolvers<ByteStream>() })
    const streams = keys.map((key) => this.#waiting.get(key)?.promise as Promise<ByteStream>)
    try {
      await alone(async () => {
        // Not only before: it may have been given up, and swept, while this waited for its turn.
        await comesHere(this.#deps, job, vm.id, bring.epoch)
        for (const { pool, volume } of rooms) {
          limit.throwIfAborted()
          await machine.volumes.delete(pool, volume)
        }
        if (rests) await machine.writeState(vm.id, bring.state, vm.spec.uid)
      })
      talk.send({ type: 'ready', job })
      for (const [i, room] of rooms.entries()) {
        const { pool, volume } = room
        const stream = await within(streams[i] as Promise<ByteStream>, limit)
        try {
          await pausePoint('bring-receive')
          await machine.volumes.receive(
            pool,
            volume,
            {
              stream: watched(stream, STILL_MS, () => stop.abort(stands(room.name))),
              ...expected(bring, volume.id),
              ...(volume.base ? { as: 'layer' } : {}),
            },
            {
              signal: limit,
              log: this.#deps.log,
              progress: (done_bytes, total_bytes) =>
                talk.send({ type: 'bringing', job, volume: volume.id, done_bytes, total_bytes }),
            },
          )
        } finally {
          stream.close()
        }
        if (room.held) await mustBeAsPromised(machine, room)
        // Saved RAM is this daemon's own to read.
        if (room.held !== 'ram')
          await machine.volumes.grant(pool, volume, room.held ? 'read-only' : { uid: vm.spec.uid })
        talk.send({ type: 'brought', job, volume: volume.id })
      }
      limit.throwIfAborted()
    } catch (error) {
      // It stays where it was. What can't be taken away now goes when the source asks for it, or at the next start (`sweepMoves`).
      await dropArrival(this.#deps, job, vm.id, all).catch((why: unknown) =>
        this.#deps.log(`${vm.id}: what was brought could not be taken away yet: ${(why as Error).message}`),
      )
      limit.throwIfAborted()
      throw error
    } finally {
      stop.abort(fail('cancelled', 'It is over.'))
      for (const key of keys) this.#waiting.delete(key)
      // Also those that came and were never read.
      for (const stream of streams) void stream.then((s) => s.close())
    }
  }
}

/** Of a source that asks just before it lets go. @throws WadahError `gone`, and what `comesHere` says */
export async function answerBrought(deps: Deps, body: unknown): Promise<{ there: true; took: Record<string, number> }> {
  const { job, vm, epoch, state } = (body ?? {}) as { job?: string; vm?: string; epoch?: number; state?: boolean }
  if (!isId(job ?? '') || !isId(vm ?? '')) throw fail('malformed', 'This is no question about a move.')
  const record = await comesHere(deps, job as string, vm as string, epoch ?? 0)
  const lost = () =>
    fail('gone', `What was brought of "${record.name}" is not all there any more.`, { remedy: 'move it again' })
  const rooms = await roomsFor(deps, record, job as string)
  for (const { pool, volume } of rooms) if (!(await deps.machine.volumes.exists(pool, volume))) throw lost()
  if (state && !(await deps.machine.known()).includes(record.id)) throw lost()
  return { there: true, took: await layerBytes(deps, rooms) }
}

/** On the target; `host`: who asks, as proved. @throws WadahError `malformed`, `not_owner`, `invalid`, what `comesHere` says */
export async function answerKept(deps: Deps, body: unknown, host: string): Promise<{ kept: true }> {
  const { job, vm, epoch, snapshot, state } = (body ?? {}) as Record<string, unknown>
  if (!isText(job) || !isText(vm) || !isText(snapshot) || typeof state !== 'object' || state === null)
    throw fail('malformed', 'This is nothing that a snapshot keeps.')
  if (!(await isBy(deps, job, host)))
    throw fail('not_owner', 'This move is carried out by another host than the one that asks.')
  await alone(async () => {
    const record = await comesHere(deps, job, vm, Number(epoch))
    if (deps.view.get(snapshotKind, snapshot)?.value.vm !== vm)
      throw fail('not_owner', `The store does not say that "${record.name}" has this snapshot.`)
    await deps.machine.snapshots.writeKept(vm, snapshot, state as Record<string, string>)
  })
  return { kept: true }
}

const isText = (value: unknown): value is string => typeof value === 'string' && isId(value)

/** What it will need here to start. @throws WadahError `host_lacks`, `busy` */
async function checkHost(deps: Deps, { id, name, spec }: VmRecord): Promise<void> {
  if (deps.machine.running(id))
    throw fail('busy', `A QEMU of "${name}" is still on its new host.`, { remedy: 'try again in a moment' })
  const { firmware, tpm } = await deps.machine.offers()
  const wanted = spec.firmware?.kind !== 'uefi' ? 'bios' : spec.firmware.secure_boot ? 'uefi-secure' : 'uefi'
  if (!firmware.includes(wanted))
    throw fail('host_lacks', `The host it was to go to has no firmware of the kind ${wanted}.`, {
      remedy: 'install ovmf (Debian, Ubuntu) or edk2-ovmf (Fedora) there; or another host: --to HOST',
    })
  if (spec.tpm && !tpm)
    throw fail('host_lacks', 'The host it was to go to has no swtpm, which is the TPM of VMs.', {
      remedy: 'apt-get install swtpm swtpm-tools there; or another host: --to HOST',
    })
}

function checkDisks(rooms: readonly Room[], bring: BringOffer): void {
  const here = rooms.map((r) => r.volume.id).toSorted()
  const there = bring.disks.map((d) => String(d?.volume)).toSorted()
  // Else the bytes of a layer would be taken for what a guest wrote.
  const agrees = rooms.every((r) => {
    const said = bring.disks.find((d) => d?.volume === r.volume.id)?.as
    return (said === 'layer') === (r.volume.base !== undefined)
  })
  if (here.join() !== there.join() || !agrees)
    throw fail('wrong_state', 'The disks that come are not those that room was made for.', { remedy: 'move it again' })
}

const stands = (name: string) =>
  fail('timeout', `Nothing came of ${name} for ${STILL_MS / 60_000} minutes.`, {
    remedy: 'look at the disks of the host where it is, then move it again',
  })

/** A layer is promised what it takes, not the size of its disk: a peer may not fill the pool. @throws WadahError `no_room` */
async function mustBeAsPromised(machine: Deps['machine'], { pool, volume, name, promised_bytes }: Room): Promise<void> {
  const bytes = await machine.volumes.allocatedBytes(pool, volume)
  if (bytes <= promised_bytes * 1.1 + SLACK_BYTES) return
  await machine.volumes.delete(pool, volume)
  throw fail('no_room', `What came of ${name} takes ${bytes} bytes, and ${promised_bytes} were promised.`, {
    remedy: 'move it again',
  })
}

function expected(bring: BringOffer, volume: string): { bytes: number; bytes_per_s?: number } {
  const bytes = bring.disks.find((d) => d.volume === volume)?.bytes ?? 0
  const { bandwidth_bytes_per_s: limit } = bring
  return {
    bytes: Number.isSafeInteger(bytes) && bytes > 0 ? bytes : 0,
    ...(limit !== undefined && Number.isSafeInteger(limit) && limit > 0 ? { bytes_per_s: limit } : {}),
  }
}

async function within<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  const late = fail('timeout', `The source opened no stream for a disk within ${STREAM_MS / 1000} s.`)
  const limit = Promise.withResolvers<never>()
  const stop = () => limit.reject(signal.reason as Error)
  const timer = setTimeout(() => limit.reject(late), STREAM_MS)
  signal.addEventListener('abort', stop, { once: true })
  try {
    signal.throwIfAborted()
    return await Promise.race([promise, limit.promise])
  } finally {
    clearTimeout(timer)
    signal.removeEventListener('abort', stop)
  }
}
