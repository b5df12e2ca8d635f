/**
 * Progress of jobs that other hosts carry out, as it comes. It is nowhere in the store: whoever watches here opens one stream to each host
 * that has jobs under way, and closes it when nobody watches any more. What is lost on the way is lost, as with a slow client: the end of a job
 * comes through the store.
 */
import type { Duplex } from 'node:stream'
import { hasEnded, type JobRecord, jobKind } from '@wadah/cluster/jobs/record'
import type { JobProgress, JobService } from '@wadah/cluster/services'
import type { CachedView } from '@wadah/store/cache'
import { type Clock, sleep } from '@wadah/store/clock'
import { type PeerHandlers, upgraded } from './listen.ts'

export const PROGRESS_PATH = '/peer/v1/progress'
const OPEN_MS = 10_000
/** An empty line now and then: a line that was cut tells nobody. */
const BEAT_MS = 15_000
const SILENT_MS = 40_000
const RETRY_MS = { first: 500, most: 30_000 }
/** What may wait for a host that does not read, bytes; what comes then is left out. */
const WAITING_MOST = 64 * 1024
const LINE_MOST = 1024

/** What another host may watch here: first how far each job is, then every change. */
export function progressHere(
  jobs: Pick<JobService, 'subscribe' | 'underWay'>,
  clock: Clock,
): PeerHandlers['opened'][string] {
  return async (_query, _host, socket) => {
    const tell = (line: string) => {
      if (!socket.destroyed && socket.writableLength < WAITING_MOST) socket.write(`${line}\n`)
    }
    const told = (p: JobProgress) => tell(JSON.stringify(p))
    socket.write(upgraded())
    for (const p of jobs.underWay()) told(p)
    const off = jobs.subscribe(told)
    let stop = () => {}
    const beat = () => {
      // Nothing of it was read for all this time.
      if (socket.writableLength >= WAITING_MOST) return void socket.destroy()
      tell('')
      stop = clock.timer(beat, BEAT_MS)
    }
    beat()
    socket.resume()
    await new Promise<void>((resolve) => socket.once('close', resolve).once('end', resolve))
    stop()
    off()
    socket.destroy()
  }
}

export type WatchOptions = {
  /** Of this host. */
  jobs: Pick<JobService, 'subscribe'>
  own: string
  view: Pick<CachedView, 'get' | 'list' | 'subscribe'>
  clock: Clock
  open(host: string, path: string, signal: AbortSignal): Promise<Duplex>
}

/** Progress of all jobs, whichever host carries them out. */
export class AllProgress implements Pick<JobService, 'subscribe'> {
  readonly #o: WatchOptions
  readonly #listeners = new Set<(p: JobProgress) => void>()
  /** By host. */
  readonly #streams = new Map<string, AbortController>()
  #unwatch: (() => void) | undefined

  constructor(o: WatchOptions) {
    this.#o = o
  }

  subscribe(listener: (p: JobProgress) => void): () => void {
    const off = this.#o.jobs.subscribe(listener)
    this.#listeners.add(listener)
    this.#watch()
    return () => {
      off()
      this.#listeners.delete(listener)
      if (this.#listeners.size === 0) this.close()
    }
  }

  /** Ends every stream to other hosts. */
  close(): void {
    this.#unwatch?.()
    this.#unwatch = undefined
    for (const stream of this.#streams.values()) stream.abort()
    this.#streams.clear()
  }

  #watch(): void {
    if (this.#unwatch) return
    const { view } = this.#o
    this.#unwatch = view.subscribe((changes) => {
      for (const { kind, rec } of changes) {
        if (kind !== jobKind.name || !rec) continue
        const job = rec.value as JobRecord
        if (!hasEnded(job)) this.#follow(job.executor.host)
        else if (!this.#hasJobs(job.executor.host)) this.#leave(job.executor.host)
      }
    })
    for (const { value: job } of view.list(jobKind)) if (!hasEnded(job)) this.#follow(job.executor.host)
  }

  #hasJobs(host: string): boolean {
    return this.#o.view.list(jobKind).some(({ value: job }) => job.executor.host === host && !hasEnded(job))
  }

  #leave(host: string): void {
    this.#streams.get(host)?.abort()
    this.#streams.delete(host)
  }

  #follow(host: string): void {
    if (host === this.#o.own || this.#streams.has(host)) return
    const stream = new AbortController()
    this.#streams.set(host, stream)
    void this.#stay(host, stream.signal)
  }

  /** Until nobody watches or that host has nothing under way: what breaks is opened again. */
  async #stay(host: string, signal: AbortSignal): Promise<void> {
    const { clock } = this.#o
    let wait_ms = RETRY_MS.first
    while (!signal.aborted) {
      try {
        await this.#read(host, signal, () => (wait_ms = RETRY_MS.first))
      } catch {
        // It may be down, or of a release that knows no such stream: its jobs are seen by their ends.
      }
      await sleep(clock, wait_ms, signal).catch(() => undefined)
      wait_ms = Math.min(wait_ms * 2, RETRY_MS.most)
    }
  }

  async #read(host: string, signal: AbortSignal, heard: () => void): Promise<void> {
    const { clock } = this.#o
    const socket = await this.#o.open(host, PROGRESS_PATH, AbortSignal.any([signal, AbortSignal.timeout(OPEN_MS)]))
    const end = () => void socket.destroy()
    let quiet = clock.timer(end, SILENT_MS)
    signal.addEventListener('abort', end, { once: true })
    if (signal.aborted) end()
    try {
      let rest = ''
      for await (const part of socket as AsyncIterable<Uint8Array>) {
        heard()
        quiet()
        quiet = clock.timer(end, SILENT_MS)
        const lines = (rest + Buffer.from(part).toString('utf8')).split('\n')
        rest = lines.pop() ?? ''
        if (rest.length > LINE_MOST) return
        for (const line of lines) this.#take(host, line)
      }
    } finally {
      quiet()
      signal.removeEventListener('abort', end)
      end()
    }
  }

  /** A host tells of jobs that it carries out itself, and of nothing else. */
  #take(host: string, line: string): void {
    const p = line === '' ? undefined : progressOf(line)
    if (!p || this.#o.view.get(jobKind, p.job)?.value.executor.host !== host) return
    for (const listener of this.#listeners) listener(p)
  }
}

/** Undefined: not what a host of this release says. Pure. */
export function progressOf(line: string): JobProgress | undefined {
  if (line.length > LINE_MOST) return undefined
  try {
    const { job, step, percent } = JSON.parse(line) as Partial<JobProgress>
    if (typeof job !== 'string' || typeof step !== 'string' || typeof percent !== 'number') return undefined
    return percent >= 0 && percent <= 100 ? { job, step, percent } : undefined
  } catch {
    return undefined
  }
}
