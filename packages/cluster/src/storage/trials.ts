/** A host that comes to a shared pool tries it by itself, with one that has it, before it may use it: in the background, until there is an answer. */
import { toFault } from '@wadah/api/fault'
import { sleep } from '@wadah/store/clock'
import { type Rec, put, unchanged } from '@wadah/store/store'
import { againOnConflict, caughtUp, commit, type Deps } from '../context.ts'
import { factsKind, type PoolRefusal } from '../members/records.ts'
import { hostName } from '../members/where.ts'
import { type PoolRecord, poolKind } from '../records.ts'
import { poolDefinition } from '../resolve.ts'
import { AGAIN, NOT_PASSED, othersOf, partnersOf, standingOf, UNSAID, untried } from './proven.ts'
import { seesShared, tryWith } from './shared.ts'

/** Until it is tried again with others that do not answer: at first, and at most. What failed is tried again after the latter. */
const WAIT_MS = 2_000
const WAIT_MOST_MS = 60_000
const TRIES = 20

/** `no`: it was tried and is not what it must be. `silent`: nobody answered. */
type Outcome = { is: 'passed' | 'gone' } | { is: 'no' | 'silent'; detail: string; remedy: string }

export class PoolTrials {
  readonly #deps: Deps
  readonly #signal: AbortSignal
  readonly #news: () => void
  /** By pool: the mount that was tried, or is being tried, since this daemon began; and what came of it. */
  readonly #known = new Map<string, { which: string; refusal?: PoolRefusal }>()
  #isFirst = true

  /** @param news what `look` says is different now */
  constructor(deps: Deps, signal: AbortSignal, news: () => void) {
    this.#deps = deps
    this.#signal = signal
    this.#news = news
  }

  /** Of the shared pools that this host sees: which it may use, and why not the others. Begins what is to be tried. */
  async look(): Promise<{ pools: string[]; refused: Record<string, PoolRefusal> }> {
    const { view, hostId } = this.#deps
    const pools: string[] = []
    const refused: [string, PoolRefusal][] = []
    const had = view.get(factsKind, hostId)?.value.pools_refused
    for (const { id, value: pool } of view.list(poolKind)) {
      if (!pool.shared || pool.mark === undefined) continue
      if (!(await seesShared(this.#deps, poolDefinition(pool), pool.mark))) continue
      const at = await this.#deps.machine.volumes.shared.mounted(poolDefinition(pool))
      const standing = standingOf(view, hostId, pool, at.what)
      this.#begin(pool, at, standing === 'proven')
      const last = this.#known.get(id)?.refusal ?? had?.[id]
      if (standing !== 'untried') pools.push(id)
      else
        refused.push([
          id,
          last?.mounted === at.what ? last : { mounted: at.what, ...untried(view, hostId, pool), untried: true },
        ])
    }
    this.#isFirst = false
    return { pools, refused: Object.fromEntries(refused.toSorted(([a], [b]) => a.localeCompare(b))) }
  }

  #begin(pool: PoolRecord, at: { what: string; which: string }, proven: boolean): void {
    if (this.#known.get(pool.id)?.which === at.which) return
    const isNew = !this.#known.has(pool.id)
    this.#known.set(pool.id, { which: at.which })
    // A pool that was made a moment ago was tried with this host then.
    if (proven && isNew && !this.#isFirst && pool.tried?.[this.#deps.hostId] !== UNSAID) return
    void this.#run(pool.id, at.which, proven && isNew && !this.#isFirst).catch((error: unknown) => {
      if (!this.#signal.aborted) this.#deps.log(`the trial of a shared pool: ${(error as Error).message}`)
    })
  }

  /** @param told it was tried; only what is mounted is to be told */
  async #run(id: string, which: string, told: boolean): Promise<void> {
    for (let wait = WAIT_MS; !this.#signal.aborted; wait = Math.min(wait * 2, WAIT_MOST_MS)) {
      const pool = this.#deps.view.get(poolKind, id)?.value
      if (!pool || this.#known.get(id)?.which !== which) return
      const at = await this.#deps.machine.volumes.shared.mounted(poolDefinition(pool))
      if (at.which !== which) {
        // Mounted anew meanwhile: the next look begins again.
        this.#known.delete(id)
        return
      }
      const outcome = await (told ? this.#passed(id, at.what) : this.#try(id, at.what)).catch(
        (error: unknown): Outcome => {
          this.#signal.throwIfAborted()
          // A store that is away, say: no answer yet.
          return { is: 'silent', detail: toFault(error).detail, remedy: AGAIN }
        },
      )
      if (this.#known.get(id)?.which !== which) return
      if (!('detail' in outcome)) {
        this.#known.set(id, { which })
        this.#news()
        return
      }
      const { is, detail, remedy } = outcome
      if (this.#known.get(id)?.refusal?.detail !== detail) this.#deps.log(detail)
      this.#known.set(id, { which, refusal: { mounted: at.what, detail, remedy } })
      this.#news()
      await sleep(this.#deps.clock, is === 'no' ? WAIT_MOST_MS : wait, this.#signal)
    }
  }

  async #try(id: string, what: string): Promise<Outcome> {
    const deps = this.#deps
    const { view, hostId } = deps
    await caughtUp(deps)
    const rec = view.get(poolKind, id)
    if (!rec || rec.value.closing) return { is: 'gone' }
    const pool = rec.value
    const standing = standingOf(view, hostId, pool, what)
    const partners = partnersOf(view, hostId, pool, standing)
    if (partners === 'itself') return this.#first(rec, what)
    const here = hostName(view, hostId)
    let no: Outcome | undefined
    let silent = ''
    for (const id of partners) {
      const name = hostName(view, id)
      try {
        await tryWith(deps, poolDefinition(pool), [id])
        return await this.#passed(pool.id, what)
      } catch (error) {
        const { code, field, detail, remedy } = toFault(error)
        // What the trial itself says; others may say `wrong_state` of what has nothing to do with the pool.
        if (code === 'wrong_state' && field === '/path')
          no ??= {
            is: 'no',
            detail: `The shared pool "${pool.name}" was tried on ${here} with ${name}, and may not be used there: ${detail}`,
            remedy: `${remedy ?? `look at what is mounted: findmnt ${pool.path}`}; ${AGAIN}: wadah pool show ${pool.name}`,
          }
        else silent ||= `${name}: ${detail}`
      }
    }
    if (no) {
      await this.#note(pool.id, NOT_PASSED)
      return no
    }
    const others = othersOf(view, hostId, pool).map((id) => hostName(view, id))
    return {
      is: 'silent',
      detail: `The shared pool "${pool.name}" could not be tried on ${here} yet with another host that has it (${silent || `${others.join(', ')}: down`}).`,
      remedy: `${AGAIN}; one that is gone for good is taken out: wadah cluster remove ${others[0] ?? 'HOST'}`,
    }
  }

  /** There is nobody to try it with. Of two that think so at once one is told by the record. */
  async #first(rec: Rec<PoolRecord>, what: string): Promise<Outcome> {
    const { hostId } = this.#deps
    const { id, value: pool } = rec
    if (pool.tried?.[hostId] === what) return { is: 'passed' }
    // Others that passed once have something else mounted by now.
    const failed = Object.entries(pool.tried ?? {}).filter(([, mounted]) => mounted === NOT_PASSED)
    const tried = { ...Object.fromEntries(failed), [hostId]: what }
    try {
      await commit(this.#deps, [unchanged(rec)], [put(poolKind, id, { ...pool, tried })])
      return { is: 'passed' }
    } catch (error) {
      return { is: 'silent', detail: toFault(error).detail, remedy: AGAIN }
    }
  }

  async #passed(id: string, what: string): Promise<Outcome> {
    await this.#note(id, what)
    return { is: 'passed' }
  }

  async #note(id: string, what: string): Promise<void> {
    const { hostId, store } = this.#deps
    await againOnConflict(TRIES, async () => {
      const rec = await store.get(poolKind, id)
      if (!rec || rec.value.tried?.[hostId] === what) return
      const tried = { ...rec.value.tried, [hostId]: what }
      await commit(this.#deps, [unchanged(rec)], [put(poolKind, id, { ...rec.value, tried })])
    })
  }
}
