/** Streams between hosts: the console of a VM that runs elsewhere, the files of an image that lies elsewhere. */
import type { Socket } from 'node:net'
import { pipeline } from 'node:stream/promises'
import { fail } from '@wadah/api/fault'
import { isId } from '@wadah/api/ids'
import type { Deps } from '@wadah/cluster/context'
import { ofImage } from '@wadah/cluster/members/where'
import type { Cluster } from '@wadah/cluster/cluster'
import { streamLink } from '@wadah/cluster/migration/link'
import { imageKind, placementKind } from '@wadah/cluster/records'
import type { VmService } from '@wadah/cluster/services'
import { bridge, byteStream, drained } from '@wadah/host/system/byte-stream'
import { openRegular } from '@wadah/host/system/files'
import type { ConsoleStream, ConsoleTarget } from '@wadah/ports/machine'
import { LENGTH_HEADER, type PeerClient } from './client.ts'
import { type PeerHandlers, upgraded } from './listen.ts'

const MOVE_PATH = '/peer/v1/move'
const BRING_PATH = '/peer/v1/bring'
const VOLUME_PATH = '/peer/v1/volume'
const OPEN_MS = 10_000
const IMAGE_MS = 600_000
const SILENT_MS = 60_000
const FILES = ['kernel', 'initrd', 'iso'] as const
type File = (typeof FILES)[number]

/** What other hosts may open here. */
export function openedHere(
  deps: Deps,
  vms: Pick<VmService, 'console'>,
  { arrivals, bringings }: Pick<Cluster, 'arrivals' | 'bringings'>,
): PeerHandlers['opened'] {
  return {
    [BRING_PATH]: async (_query, host, socket) => {
      socket.write(upgraded())
      await bringings.handle(streamLink(socket), host)
    },
    [VOLUME_PATH]: async (query, host, socket) => {
      const take = bringings.take(query.get('job') ?? '', query.get('volume') ?? '', host)
      socket.write(upgraded())
      take(byteStream(socket))
    },
    [MOVE_PATH]: async (_query, host, socket) => {
      socket.write(upgraded())
      await arrivals.handle(streamLink(socket), host)
    },
    '/peer/v1/console': async (query, _host, socket) => {
      const [vm, kind, port] = [query.get('vm') ?? '', query.get('kind'), Number(query.get('port') ?? 0)]
      if (!isId(vm) || (kind !== 'serial' && kind !== 'vnc')) throw fail('malformed', 'This is no console.')
      const stream = await vms.console(vm, { kind, ...(kind === 'serial' ? { port } : {}) })
      socket.write(upgraded())
      socket.once('close', () => stream.close())
      const toGuest = async () => {
        for await (const part of socket as AsyncIterable<Uint8Array>) await stream.write(part)
      }
      void toGuest()
        .catch(() => undefined)
        .finally(() => stream.close())
      for await (const part of stream.data) if (!socket.write(part)) await drained(socket)
      socket.end()
    },
    '/peer/v1/image': async (query, _host, socket) => {
      const [image, file] = [query.get('image') ?? '', query.get('file') as File]
      if (!isId(image) || !FILES.includes(file)) throw fail('malformed', 'This is no file of an image.')
      const path = (await deps.machine.images.files(image))[file]
      if (path === undefined) throw fail('not_found', `The ${file} of the image ${image} is not here.`)
      await using handle = await openRegular(path)
      const { size } = await handle.stat()
      // Who stops reading does not keep the file open for ever.
      ;(socket as Socket).setTimeout(SILENT_MS, () => socket.destroy())
      socket.write(upgraded({ [LENGTH_HEADER]: String(size) }))
      if (size === 0) return void socket.end()
      // No more than was announced: the file may be longer by now.
      await pipeline(handle.createReadStream({ end: size - 1, autoClose: false }), socket)
    },
  }
}

/** To the other host of a move. */
export function waysForMoves(peers: PeerClient): NonNullable<Deps['moves']> {
  const link = (path: string) => async (host: string, signal: AbortSignal) =>
    streamLink(await peers.open(host, path, signal))
  return {
    open: link(MOVE_PATH),
    bring: link(BRING_PATH),
    async carry(host, what, stream, signal) {
      const query = new URLSearchParams(what).toString()
      await bridge(byteStream(await peers.open(host, `${VOLUME_PATH}?${query}`, signal)), stream)
    },
  }
}

/** The console of a VM, wherever it runs. */
export function consoles(deps: Deps, peers: PeerClient, vms: Pick<VmService, 'console'>): Pick<VmService, 'console'> {
  return {
    async console(vm: string, target: ConsoleTarget): Promise<ConsoleStream> {
      const host = deps.view.get(placementKind, vm)?.value.host
      if (host === undefined || host === deps.hostId) return vms.console(vm, target)
      const query = new URLSearchParams({ vm, kind: target.kind, port: String(target.port ?? 0) })
      const socket = await peers.open(host, `/peer/v1/console?${query.toString()}`, AbortSignal.timeout(OPEN_MS))
      return byteStream(socket)
    },
  }
}

/** Kernel, initrd or CD of an image that this host lacks come from the host that has them; once, for they never change. */
export function imageFetcher(deps: Deps, peers: PeerClient): NonNullable<Deps['haveImage']> {
  const under_way = new Map<string, Promise<void>>()
  const fetchAll = async (image: string) => {
    const record = deps.view.get(imageKind, image)?.value
    const host = ofImage(deps.view, image)
    if (!record || host === undefined || host === deps.hostId) return
    const has = await deps.machine.images.files(image)
    const wanted: File[] = record.kind === 'iso' ? ['iso'] : record.kind === 'kernel' ? ['kernel'] : []
    if (record.has_initrd) wanted.unshift('initrd')
    const signal = AbortSignal.timeout(IMAGE_MS)
    for (const file of wanted) {
      if (has[file] !== undefined) continue
      const path = `/peer/v1/image?${new URLSearchParams({ image, file }).toString()}`
      await deps.machine.images.putFile(image, file, await peers.receive(host, path, signal), signal)
      deps.log(`the ${file} of the image ${record.name} came from ${peers.nameOf(host)}`)
    }
  }
  return (image) => {
    const mine = under_way.get(image) ?? fetchAll(image).finally(() => under_way.delete(image))
    under_way.set(image, mine)
    return mine
  }
}
