/** Server-sent events: every change that clients know the kind of, in order and resumable; and progress of jobs, which is not kept. */
import { fail } from '@wadah/api/fault'
import type { Event } from '@wadah/api/schema/host'
import type { JobService } from '@wadah/cluster/services'
import type { CachedView } from '@wadah/store/cache'
import type { Clock } from '@wadah/store/clock'
import type { Change, Revision, Store } from '@wadah/store/store'
import type { Identity } from './access/store.ts'
import { nearest } from '@wadah/api/nearest'

/** A change of the store as clients know it, or undefined when it is none of their business. */
export type MapEvent = (change: Change) => Omit<Event, 'id'> | undefined

export const RESOURCES = [
  'vm',
  'image',
  'volume',
  'pool',
  'network',
  'firewall-group',
  'rule',
  'job',
  'token',
  'snapshot',
] as const

export type EventOptions = {
  store: Store
  view: CachedView
  mapEvent: MapEvent
  jobs: Pick<JobService, 'subscribe'>
  clock: Clock
  stillHolds: (identity: Identity) => boolean
  onTrouble: (error: unknown) => void
  /** Streams in all, and of one user or token; default 64 and 16. */
  most?: number
  mostEach?: number
  heartbeat_ms?: number
  /** What may wait for a slow client, bytes; default 256 KiB. */
  bufferBytes?: number
}

export type Opening = {
  identity: Identity | undefined
  resource: string | undefined
  lastEventId: string | undefined
  signal: AbortSignal
}

type Wanted = ReadonlySet<string> | undefined

export class EventStreams {
  #o: Required<EventOptions>
  #open = new Map<Stream, string>()
  #unsubscribe: (() => void) | undefined

  constructor(options: EventOptions) {
    this.#o = { most: 64, mostEach: 16, heartbeat_ms: 15_000, bufferBytes: 256 * 1024, ...options }
  }

  /** @throws WadahError `rate_limited` (too many streams), `invalid` (an unknown resource) */
  open(opening: Opening): AsyncIterable<Uint8Array> {
    const wanted = parseResources(opening.resource)
    const who = opening.identity ? `${opening.identity.subject.kind}:${opening.identity.subject.id}` : 'nobody'
    const own = [...this.#open.values()].filter((w) => w === who).length
    if (this.#open.size >= this.#o.most || own >= this.#o.mostEach) {
      throw fail(
        'rate_limited',
        `There are too many event streams (at most ${this.#o.most}, ${this.#o.mostEach} for one user or token).`,
        {
          remedy: 'close one that is not needed',
        },
      )
    }
    const stream = new Stream(this.#o, wanted, opening)
    this.#open.set(stream, who)
    this.#unsubscribe ??= this.#o.jobs.subscribe((progress) => {
      const text = `event: progress\ndata: ${JSON.stringify(progress)}\n\n`
      for (const each of this.#open.keys()) each.volatile('job', text)
    })
    return stream.run(() => {
      this.#open.delete(stream)
      if (this.#open.size > 0) return
      this.#unsubscribe?.()
      this.#unsubscribe = undefined
    })
  }

  /** Ends all streams. */
  close(): void {
    for (const stream of this.#open.keys()) stream.end()
  }
}

function parseResources(text: string | undefined): Wanted {
  if (text === undefined || text === '') return undefined
  const wanted = text.split(',').map((part) => part.trim())
  for (const word of wanted) {
    if ((RESOURCES as readonly string[]).includes(word)) continue
    const near = nearest(word, RESOURCES)
    const right = near ? `did you mean "${near}"?` : `known are ${RESOURCES.join(', ')}`
    throw fail('invalid', `query parameter resource: "${word}" is no resource; ${right}`, { field: '/resource' })
  }
  return new Set(wanted)
}

/** One client's stream. Never waits for the client: what it does not take is bounded, and then it is let go. */
class Stream {
  #o: Required<EventOptions>
  #wanted: Wanted
  #opening: Opening
  #stop = new AbortController()
  #queue: string[] = []
  #queued = 0
  #wake: (() => void) | undefined
  #last: Revision
  #told: Revision

  constructor(o: Required<EventOptions>, wanted: Wanted, opening: Opening) {
    this.#o = o
    this.#wanted = wanted
    this.#opening = opening
    this.#last = this.#told = o.view.revision
  }

  end(): void {
    this.#stop.abort()
    this.#wake?.()
  }

  async *run(onEnd: () => void): AsyncGenerator<Uint8Array> {
    const { signal } = this.#opening
    const leave = () => this.end()
    signal.addEventListener('abort', leave, { once: true })
    const after = this.#begin()
    this.#follow(after).catch((error: unknown) => {
      this.#o.onTrouble(error)
      this.end()
    })
    try {
      while (this.#queue.length > 0 || !this.#stop.signal.aborted) {
        const text = this.#queue.join('')
        this.#queue = []
        this.#queued = 0
        if (text !== '') yield Buffer.from(text)
        if (this.#queue.length === 0 && !this.#stop.signal.aborted && !signal.aborted) await this.#wait()
        if (signal.aborted) return
      }
    } finally {
      signal.removeEventListener('abort', leave)
      this.end()
      onEnd()
    }
  }

  /** Resolves at the next piece, at the end, or for a sign of life. */
  async #wait(): Promise<void> {
    let cancel = () => {}
    const beat = new Promise<'beat'>((resolve) => {
      cancel = this.#o.clock.timer(() => resolve('beat'), this.#o.heartbeat_ms)
    })
    const piece = new Promise<'piece'>((resolve) => {
      this.#wake = () => resolve('piece')
    })
    const what = await Promise.race([beat, piece])
    cancel()
    this.#wake = undefined
    if (what === 'beat') this.#beat()
  }

  #beat(): void {
    const { identity } = this.#opening
    if (identity && !this.#o.stillHolds(identity)) return this.end()
    // The id goes along, so that a stream that sees few events can still be resumed after a long time.
    const id = this.#last > this.#told ? `id: ${this.#id(this.#last)}\n` : ''
    this.#told = this.#last
    this.#push(`: still here\n${id}\n`)
  }

  /** Greets, and says from where on to follow. */
  #begin(): Revision {
    const { lastEventId } = this.#opening
    const now = this.#o.view.revision
    if (lastEventId === undefined || lastEventId === '') {
      this.#push(`retry: 2000\nid: ${this.#id(now)}\n\n`)
      return now
    }
    const dot = lastEventId.lastIndexOf('.')
    const revision = Number(lastEventId.slice(dot + 1))
    if (lastEventId.slice(0, dot) === this.#o.store.id && Number.isSafeInteger(revision) && revision >= 0) {
      this.#push('retry: 2000\n\n')
      return revision
    }
    this.#push('retry: 2000\n\n')
    this.#reset(now, 'the id is of another store')
    return now
  }

  async #follow(after: Revision): Promise<void> {
    const { signal } = this.#stop
    let from = after
    while (!signal.aborted) {
      let held: Omit<Event, 'id'>[] = []
      let gap: Revision | undefined
      for await (const item of this.#o.store.watch('', from, signal)) {
        if (item.type === 'compacted') {
          gap = item.current
          break
        }
        if (item.type === 'progress') {
          this.#last = Math.max(this.#last, item.revision)
          continue
        }
        const event = this.#o.mapEvent(item)
        if (event && (!this.#wanted || this.#wanted.has(event.resource))) held.push(event)
        if (!item.last) continue
        this.#last = item.revision
        if (held.length > 0) this.#events(held, item.revision)
        held = []
      }
      if (gap === undefined) return
      this.#reset(gap, 'the changes since then are no longer known')
      from = gap
    }
  }

  /**
   * All changes of one revision. Only the last carries its id: whoever is cut off between them gets all of them again
   * and misses none.
   */
  #events(events: readonly Omit<Event, 'id'>[], revision: Revision): void {
    const { identity } = this.#opening
    if (identity && !this.#o.stillHolds(identity)) return this.end()
    const text = events.map((event, i) => {
      const last = i === events.length - 1
      const id = this.#id(last ? revision : revision - 1)
      return `${last ? `id: ${id}\n` : ''}event: change\ndata: ${JSON.stringify({ id, ...event })}\n\n`
    })
    this.#told = revision
    this.#push(text.join(''))
  }

  #reset(revision: Revision, why: string): void {
    this.#last = this.#told = revision
    const id = this.#id(revision)
    this.#push(`id: ${id}\nevent: reset\ndata: ${JSON.stringify({ id, reason: `${why}: list again` })}\n\n`)
  }

  /** Something that may be lost. */
  volatile(resource: string, text: string): void {
    if (this.#wanted && !this.#wanted.has(resource)) return
    if (this.#queued < this.#o.bufferBytes / 4) this.#push(text)
  }

  #push(text: string): void {
    if (this.#stop.signal.aborted) return
    if (this.#queued + text.length > this.#o.bufferBytes) {
      // Without an id: coming back with the last one seen brings everything since.
      this.#queue = [`event: reset\ndata: ${JSON.stringify({ reason: 'too slow: connect and list again' })}\n\n`]
      return this.end()
    }
    this.#queue.push(text)
    this.#queued += text.length
    this.#wake?.()
  }

  #id(revision: Revision): string {
    return `${this.#o.store.id}.${revision}`
  }
}
