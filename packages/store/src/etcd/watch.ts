/**
 * One watch of the whole store, gone on with at another member from where it was. Its prefix is chosen here: what happened beside it
 * tells how far the watch is complete. Only revisions of events are resumed from (progress requests of etcd 3.4 may run ahead of events).
 */
import type { Clock } from '../clock.ts'
import { sleep } from '../clock.ts'
import { StoreError } from '../errors.ts'
import { type Change, type Compacted, type Progress, type Rec, type Revision, splitKey } from '../store.ts'
import type { Duplex, EtcdClient } from './client.ts'
import type { EtcdEvent, KeyValue, WatchReply } from './wire.ts'

const AGAIN_MS = 200
/** Now and then a word is asked for: of a member that hangs, or is cut off without a word, one would hear no news for seconds. */
const WORD_MS = 500
/** It gave none for so long: another is asked. At the beginning too: the first word is that the watch is there. */
const SILENT_MS = 1_000

export type FollowOptions = {
  client: EtcdClient
  clock: Clock
  /** All keys of the store. */
  range: { key: Buffer; range_end: Buffer }
  /** What keys of records begin with. */
  records: string
  /** etcd's revision that is the store's revision 0. */
  base: number
  prefix: string
  after: Revision
  signal: AbortSignal
  /** The store closes. */
  ending: AbortSignal
  rec: (kv: KeyValue) => Rec<unknown>
  /** etcd's revision now, by a majority. */
  current: () => Promise<Revision>
  /** Where others write too: the last revision that is ours. Of theirs no event tells. */
  last?: () => Promise<Revision>
}

export async function* follow(o: FollowOptions): AsyncGenerator<Change | Progress | Compacted, void> {
  let position = o.after
  const stop = AbortSignal.any([o.signal, o.ending])
  while (!o.signal.aborted) {
    if (o.ending.aborted) throw o.ending.reason
    const { stream, failed } = o.client.stream<object, WatchReply>('Watch', 'Watch')
    const cancel = () => stream.cancel()
    const hearing = listen(stream, o.clock)
    stop.addEventListener('abort', cancel, { once: true })
    try {
      for await (const item of items(stream, hearing.replies, o, position)) {
        if (o.signal.aborted) return
        if (item.type === 'progress') position = item.revision
        yield item
        if (item.type === 'compacted') return
      }
    } catch (error) {
      if (error instanceof StoreError) throw error
    } finally {
      hearing.stop()
      stop.removeEventListener('abort', cancel)
      stream.cancel()
    }
    if (stop.aborted) continue
    failed(hearing.silent())
    await sleep(o.clock, AGAIN_MS, stop).catch(() => undefined)
  }
}

/**
 * What a stream brings, which is ended when its member says nothing any more. Words that are asked for tell no revision, only that it
 * lives. As long as the reader is busy, or this process stood still itself, nothing is held against the member.
 */
function listen(stream: Duplex<object, WatchReply>, clock: Clock) {
  let heard_ms = clock.monotonic_ms()
  let looked_ms = heard_ms
  let [silent, created, waiting] = [false, false, true]
  let off = clock.timer(look, WORD_MS)
  function look(): void {
    const now = clock.monotonic_ms()
    if (!waiting || now - looked_ms > 2 * WORD_MS) heard_ms = now
    looked_ms = now
    if (now - heard_ms > SILENT_MS) {
      silent = true
      stream.cancel()
      return
    }
    if (created && waiting) stream.write({ progress_request: {} })
    off = clock.timer(look, WORD_MS)
  }
  async function* replies(): AsyncGenerator<WatchReply> {
    for await (const reply of stream as AsyncIterable<WatchReply>) {
      ;[created, waiting] = [true, false]
      yield reply
      waiting = true
      heard_ms = clock.monotonic_ms()
    }
  }
  return { replies, silent: () => silent, stop: () => off() }
}

/** What one stream brings. Ends or throws when it does. */
async function* items(
  stream: Duplex<object, WatchReply>,
  replies: () => AsyncGenerator<WatchReply>,
  o: FollowOptions,
  after: Revision,
): AsyncGenerator<Change | Progress | Compacted, void> {
  // Taken before anything may fail: a stream's error without a listener would end the process.
  stream.on('error', () => undefined)
  let held: EtcdEvent[] = []
  let reached = after + o.base
  stream.write({ create_request: { ...o.range, start_revision: after + o.base + 1, prev_kv: true, fragment: true } })
  for await (const reply of replies()) {
    // A word that was asked for.
    if (!reply.created && !reply.canceled && reply.events.length === 0 && Number(reply.compact_revision) === 0) continue
    const now = Number(reply.header.revision) - o.base
    // A member that lags behind knows less than a majority does; its word alone does not end a watch.
    if (Number(reply.compact_revision) > 0 || (reply.created && now < after)) {
      const current = await o.current()
      const forgotten = Number(reply.compact_revision) - o.base
      if (forgotten > 0 || current < after) {
        yield { type: 'compacted', oldest: Math.max(0, forgotten), current }
        return
      }
    }
    if (reply.canceled) return
    // Followers of some releases send again what was before (etcd #15520).
    const news = reply.events.filter((e) => Number(e.kv.mod_revision) > reached)
    // A revision may lie in two parts: only the last part says that it is whole.
    const events = [...held, ...news]
    held = reply.fragment ? lastRevision(events) : []
    const whole = events.slice(0, events.length - held.length)
    yield* changes(whole, o)
    const end = whole.at(-1)
    if (end) {
      reached = Number(end.kv.mod_revision)
      yield { type: 'progress', revision: reached - o.base }
    }
    if (!end && reply.created && (now === after || (o.last && (await o.last()) <= after)))
      yield { type: 'progress', revision: after }
  }
}

function lastRevision(events: readonly EtcdEvent[]): EtcdEvent[] {
  const last = events.at(-1)?.kv.mod_revision
  return events.filter((e) => e.kv.mod_revision === last)
}

function* changes(events: readonly EtcdEvent[], o: FollowOptions): Generator<Change> {
  const begin = o.records + o.prefix
  const seen = events.filter((e) => e.kv.key.toString().startsWith(begin))
  for (const [i, { type, kv, prev_kv }] of seen.entries()) {
    const base = {
      revision: Number(kv.mod_revision) - o.base,
      last: seen[i + 1]?.kv.mod_revision !== kv.mod_revision,
      ...splitKey(kv.key.toString().slice(o.records.length)),
      ...(prev_kv ? { before: o.rec(prev_kv) } : {}),
    }
    if (type === 'DELETE') yield { type: 'delete', ...base }
    else yield { type: 'put', ...base, rec: o.rec(kv) }
  }
}
