/** Requests to the database thread and their answers. */
import { Worker } from 'node:worker_threads'
import { StoreError, toPlain } from '../errors.ts'
import type { ChangeRow, FromWorker, Outcome, Request, WorkerOptions } from './protocol.ts'

type Waiting = { done: (outcome: Outcome<unknown>) => void; timer: NodeJS.Timeout }
type Body<R> = R extends unknown ? Omit<R, 'id'> : never

export type LinkEvents = {
  changes: (changes: ChangeRow[], revision: number) => void
  /** The thread ended though nobody asked it to. */
  died: (why: StoreError) => void
}

export class Link {
  #worker: Worker
  #waiting = new Map<number, Waiting>()
  #next = 1
  #closed: StoreError | undefined
  #exited: Promise<void>
  #file: string
  /** Filled before `open` resolves. */
  store = ''
  revision = 0

  private constructor(url: URL, options: WorkerOptions, events: LinkEvents, opened: (error?: StoreError) => void) {
    this.#file = options.file
    this.#worker = new Worker(url, { workerData: options, name: 'wadah-store', execArgv: [] })
    this.#worker.on('message', (message: FromWorker) => {
      if (message.type === 'open') {
        this.store = message.store
        this.revision = message.revision
        this.#worker.unref()
        opened()
      } else if (message.type === 'failed') {
        this.#closed = new StoreError(message.error)
        opened(this.#closed)
      } else {
        this.revision = message.revision
        events.changes(message.changes, message.revision)
        for (const { id, ...outcome } of message.replies) this.#settle(id, outcome)
      }
    })
    const died = (cause?: unknown) => {
      if (this.#closed) return
      const text = cause instanceof Error ? `: ${cause.message}` : ''
      const why = new StoreError({
        kind: 'io',
        effect: 'unknown',
        detail: `the database thread of ${this.#file} ended${text}`,
        remedy: 'Restart wadahd: systemctl restart wadahd',
        file: this.#file,
        cause,
      })
      this.#closed = why
      for (const id of this.#waiting.keys()) this.#settle(id, { error: toPlain(why) })
      opened(why)
      events.died(why)
    }
    this.#worker.on('error', died)
    this.#exited = new Promise((resolve) => {
      this.#worker.on('exit', () => {
        died()
        resolve()
      })
    })
  }

  /** @throws StoreError why it cannot be opened */
  static async open(url: URL, options: WorkerOptions, events: LinkEvents): Promise<Link> {
    const opening = Promise.withResolvers<void>()
    const link = new Link(url, options, events, (error) => (error ? opening.reject(error) : opening.resolve()))
    try {
      await opening.promise
    } catch (error) {
      await link.#worker.terminate()
      throw error
    }
    return link
  }

  #settle(id: number, outcome: Outcome<unknown>): void {
    const waiting = this.#waiting.get(id)
    if (!waiting) return
    this.#waiting.delete(id)
    clearTimeout(waiting.timer)
    if (this.#waiting.size === 0) this.#worker.unref()
    waiting.done(outcome)
  }

  /** `arrived` runs in the same turn as the answer, before any later change is handed out. */
  ask<T>(request: Body<Request>, timeout_ms: number, arrived?: (value: T) => void): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      if (this.#closed) return reject(this.#closed)
      const id = this.#next++
      const timer = setTimeout(() => {
        const write = request.op === 'txn' || request.op === 'revoke'
        const detail = `no answer from the store ${this.#file} within ${timeout_ms} ms`
        const remedy = 'Its disk is slow or stuck; look with `dmesg` and `iostat`.'
        const error = { kind: 'timeout', detail, remedy, retryable: true, effect: write ? 'unknown' : 'none' } as const
        this.#settle(id, { error })
      }, timeout_ms)
      const done = (outcome: Outcome<unknown>) => {
        if ('error' in outcome) return reject(new StoreError(outcome.error))
        arrived?.(outcome.value as T)
        resolve(outcome.value as T)
      }
      this.#waiting.set(id, { done, timer })
      this.#worker.ref()
      this.#worker.postMessage({ id, ...request })
    })
  }

  /** What was asked before is still answered. */
  async close(): Promise<void> {
    if (!this.#closed) {
      this.#worker.ref()
      this.#worker.postMessage({ id: this.#next++, op: 'close' })
      this.#closed = new StoreError({ kind: 'closed', detail: `the store ${this.#file} was closed` })
    }
    await this.#exited
  }
}
