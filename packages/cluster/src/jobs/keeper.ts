/** The record of one running job: every change of it is one compare-and-swap, one after the other. */
import { fault, WadahError } from '@wadah/api/fault'
import { type Clock, sleep } from '@wadah/store/clock'
import { StoreError } from '@wadah/store/errors'
import { atRevision, type Check, put, type Store, type Write } from '@wadah/store/store'
import { anyFault } from './faults.ts'
import { type JobRecord, jobKind } from './record.ts'

/** Another executor has the job, or the daemon stops: this one must not touch it again. */
export class Halted extends Error {
  constructor(why: string) {
    super(why)
    this.name = 'Halted'
  }
}

export type KeeperOptions = {
  store: Store
  clock: Clock
  token: () => string
  /** Aborts when this executor must stop. */
  halt: AbortSignal
  /** Another executor wrote the record. */
  onFenced: () => void
  onCommit: (record: JobRecord) => void
}

export class Keeper {
  #o: KeeperOptions
  #record: JobRecord
  #modified: number
  #last: Promise<unknown> = Promise.resolve()

  constructor(o: KeeperOptions, record: JobRecord, modified: number) {
    this.#o = o
    this.#record = record
    this.#modified = modified
  }

  /** As last committed. Not to be changed. */
  get record(): JobRecord {
    return this.#record
  }

  /**
   * Commits what `change` does to a copy of the record, together with `writes`. `change` may throw to call it off; it runs after
   * all earlier commits. While the store fails for a time (a full disk, say) this waits and tries again.
   * @throws Halted; WadahError `conflict` when one of `checks` fails; what `change` throws
   */
  commit(
    change: (draft: JobRecord) => void,
    writes: readonly Write[] = [],
    checks: readonly Check[] = [],
  ): Promise<void> {
    const mine = this.#last.then(() => this.#commit(change, writes, checks))
    this.#last = mine.catch(() => undefined)
    return mine
  }

  async #commit(change: (draft: JobRecord) => void, writes: readonly Write[], checks: readonly Check[]): Promise<void> {
    const { store, token, onFenced, onCommit } = this.#o
    const draft = structuredClone(this.#record)
    change(draft)
    const own = atRevision(jobKind, draft.id, this.#modified)
    const outcome = await this.#retry(token(), (t) =>
      store.txn([own, ...checks], [put(jobKind, draft.id, draft), ...writes], t),
    )
    if (outcome.ok) {
      this.#record = draft
      this.#modified = outcome.revision
      onCommit(draft)
      return
    }
    if (outcome.failed.some((f) => f.check.kind === jobKind.name && f.check.id === draft.id)) {
      onFenced()
      throw new Halted('another executor has taken the job over')
    }
    const what = outcome.failed.map((f) => `${f.check.kind} ${f.check.id}`).join(', ')
    throw new WadahError(fault('conflict', `Changed by somebody else meanwhile: ${what}. Look at it and try again.`))
  }

  async #retry<T>(token: string, attempt: (token: string) => Promise<T>): Promise<T> {
    let delay_ms = 50
    for (;;) {
      if (this.#o.halt.aborted) throw new Halted('the daemon stops')
      try {
        return await attempt(token)
      } catch (error) {
        if (error instanceof StoreError && error.kind === 'closed') throw new Halted('the store was closed')
        if (!(error instanceof StoreError) || !(error.retryable || error.effect === 'unknown')) {
          throw new WadahError(anyFault(error), error)
        }
        await sleep(this.#o.clock, delay_ms, this.#o.halt).catch(() => undefined)
        delay_ms = Math.min(delay_ms * 2, 5000)
      }
    }
  }
}
