/** A copy of the store (or of all keys under a prefix) in memory, kept current by a watch: what pages and lists are served from. */
import { type Clock, sleep, systemClock } from './clock.ts'
import { StoreError } from './errors.ts'
import { type Change, type Kind, LIST_LIMIT_MAX, type Rec, type Revision, type Store } from './store.ts'

/** One change as the view saw it; after a gap in the watch it is worked out by comparing. */
export type ViewChange = {
  type: 'put' | 'delete'
  revision: Revision
  kind: string
  id: string
  rec?: Rec<unknown>
  before?: Rec<unknown>
}

export type ViewOptions = {
  /** Beginning of the keys it holds; default '', everything. */
  prefix?: string
  clock?: Clock
  /** Told about a failure of the store that the view gets over by itself by trying again. */
  onTrouble?: (error: unknown) => void
}

type Waiter = { revision: Revision; resolve: () => void }

export class CachedView {
  readonly store: Store
  #prefix: string
  #clock: Clock
  #onTrouble: (error: unknown) => void
  #kinds = new Map<string, Map<string, Rec<unknown>>>()
  #sorted = new Map<string, Rec<unknown>[]>()
  #parsed = new WeakMap<Rec<unknown>, Rec<unknown>>()
  #revision: Revision = 0
  #waiters = new Set<Waiter>()
  #listeners = new Set<(changes: readonly ViewChange[]) => void>()
  #stop = new AbortController()
  #running: Promise<void> = Promise.resolve()

  private constructor(store: Store, o: ViewOptions) {
    this.store = store
    this.#prefix = o.prefix ?? ''
    this.#clock = o.clock ?? systemClock
    this.#onTrouble = o.onTrouble ?? (() => undefined)
  }

  /** Reads everything once, then follows. @throws StoreError when the first reading fails */
  static async open(store: Store, o: ViewOptions = {}): Promise<CachedView> {
    const view = new CachedView(store, o)
    await view.#reload()
    view.#running = view.#follow()
    return view
  }

  /** The view holds the store as of this revision. */
  get revision(): Revision {
    return this.#revision
  }

  get<T>(kind: Kind<T>, id: string): Rec<T> | undefined {
    const rec = this.#kinds.get(kind.name)?.get(id)
    return rec && this.#typed(kind, rec)
  }

  /** In order of id. Do not change the array. */
  list<T>(kind: Kind<T>, prefix = ''): readonly Rec<T>[] {
    let all = this.#sorted.get(kind.name)
    if (!all) {
      all = [...(this.#kinds.get(kind.name)?.values() ?? [])].sort((a, b) => (a.id < b.id ? -1 : 1))
      this.#sorted.set(kind.name, all)
    }
    const chosen = prefix === '' ? all : all.filter((rec) => rec.id.startsWith(prefix))
    return kind.parse ? chosen.map((rec) => this.#typed(kind, rec)) : (chosen as Rec<T>[])
  }

  #typed<T>(kind: Kind<T>, rec: Rec<unknown>): Rec<T> {
    if (!kind.parse) return rec as Rec<T>
    const known = this.#parsed.get(rec)
    if (known) return known as Rec<T>
    const made = { ...rec, value: kind.parse(rec.value) }
    this.#parsed.set(rec, made)
    return made
  }

  /**
   * Resolves once the view holds `revision`: wait for the revision of your own write before reading it here.
   * @throws StoreError `timeout` after `timeout_ms` (default 10,000), `closed`; or the signal's reason
   */
  async waitFor(revision: Revision, o: { timeout_ms?: number; signal?: AbortSignal } = {}): Promise<void> {
    if (this.#revision >= revision) return
    const over = new AbortController()
    const reached = new Promise<void>((resolve) => {
      const waiter = { revision, resolve }
      this.#waiters.add(waiter)
      over.signal.addEventListener('abort', () => this.#waiters.delete(waiter), { once: true })
    })
    const timeout_ms = o.timeout_ms ?? 10_000
    const ends = [over.signal, this.#stop.signal, ...(o.signal ? [o.signal] : [])]
    const late = sleep(this.#clock, timeout_ms, AbortSignal.any(ends)).then(() => {
      const detail = `the copy of the store is at revision ${this.#revision}, not yet at ${revision}`
      throw new StoreError({ kind: 'timeout', detail, retryable: true })
    })
    try {
      await Promise.race([reached, late])
    } finally {
      late.catch(() => undefined)
      over.abort()
    }
  }

  /** Called with all changes of a revision at once, after the view holds them. Returns the way to end it. */
  subscribe(listener: (changes: readonly ViewChange[]) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  async close(): Promise<void> {
    this.#stop.abort(new StoreError({ kind: 'closed', detail: 'the copy of the store was closed' }))
    await this.#running
  }

  async #follow(): Promise<void> {
    const { signal } = this.#stop
    let delay_ms = 50
    while (!signal.aborted) {
      try {
        await this.#watch(signal)
        if (!signal.aborted) await this.#reload()
        delay_ms = 50
      } catch (error) {
        if (error instanceof StoreError && error.kind === 'closed') {
          this.#stop.abort(error)
          return
        }
        this.#onTrouble(error)
        await sleep(this.#clock, delay_ms, signal).catch(() => undefined)
        delay_ms = Math.min(delay_ms * 2, 5000)
      }
    }
  }

  /** Ends when the watch can't go on from where it was. */
  async #watch(signal: AbortSignal): Promise<void> {
    let batch: Change[] = []
    for await (const item of this.store.watch(this.#prefix, this.#revision, signal)) {
      if (item.type === 'compacted') return
      if (item.type === 'progress') {
        this.#reach(item.revision)
        continue
      }
      batch.push(item)
      if (!item.last) continue
      const changes = batch.map((c) => {
        const rec = c.type === 'put' ? { rec: c.rec } : {}
        return this.#change({ type: c.type, revision: c.revision, kind: c.kind, id: c.id, ...rec })
      })
      this.#apply(changes, item.revision)
      batch = []
    }
  }

  #change(c: Omit<ViewChange, 'before'>): ViewChange {
    const before = this.#kinds.get(c.kind)?.get(c.id)
    return { ...c, ...(before && { before }) }
  }

  async #reload(): Promise<void> {
    const found = new Map<string, Rec<unknown>>()
    let cursor: string | undefined
    let revision: Revision | undefined
    do {
      const page = await this.store.range(this.#prefix, { limit: LIST_LIMIT_MAX, ...(cursor && { cursor }) })
      if (page.type === 'compacted') {
        // The store moved on while we read: begin again.
        found.clear()
        cursor = undefined
        revision = undefined
        continue
      }
      for (const rec of page.items) found.set(`${rec.kind}:${rec.id}`, rec)
      revision = page.revision
      cursor = page.cursor
    } while (cursor !== undefined || revision === undefined)
    const changes: ViewChange[] = []
    for (const rec of found.values()) {
      const { kind, id, modified } = rec
      if (this.#kinds.get(kind)?.get(id)?.modified === modified) continue
      changes.push(this.#change({ type: 'put', revision: modified, kind, id, rec }))
    }
    for (const all of this.#kinds.values()) {
      for (const { kind, id } of all.values()) {
        if (!found.has(`${kind}:${id}`)) changes.push(this.#change({ type: 'delete', revision, kind, id }))
      }
    }
    this.#apply(
      changes.sort((a, b) => a.revision - b.revision),
      revision,
    )
  }

  #apply(changes: readonly ViewChange[], revision: Revision): void {
    for (const { kind, id, rec } of changes) {
      let all = this.#kinds.get(kind)
      if (!all) {
        all = new Map()
        this.#kinds.set(kind, all)
      }
      if (rec) all.set(id, rec)
      else all.delete(id)
      this.#sorted.delete(kind)
    }
    this.#reach(revision)
    if (changes.length === 0) return
    for (const listener of this.#listeners) {
      try {
        listener(changes)
      } catch (error) {
        this.#onTrouble(error)
      }
    }
  }

  #reach(revision: Revision): void {
    this.#revision = revision
    for (const waiter of this.#waiters) {
      if (waiter.revision <= revision) {
        this.#waiters.delete(waiter)
        waiter.resolve()
      }
    }
  }
}
