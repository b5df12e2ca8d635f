/** How the harness kills a daemon without a process: from the moment of death on, nothing it calls does anything or answers. */
import { fault, WadahError } from '@wadah/api/fault'
import type { Store } from '@wadah/store/store'

const never = () => new Promise<never>(() => undefined)

/** One life. A second life made from the first is not killed again. */
export class Cut {
  dead = false
  commits = 0
  calls: string[] = []
  dieAfterCommit = 0
  dieAfterCall = 0
  failAtCall = 0
  readonly #plan: Cut | undefined
  #death = Promise.withResolvers<undefined>()

  constructor(plan?: Cut) {
    this.#plan = plan
    if (!plan || plan.used) return
    this.dieAfterCommit = plan.dieAfterCommit
    this.dieAfterCall = plan.dieAfterCall
    this.failAtCall = plan.failAtCall
  }

  /** It was killed once, in this life or one before. */
  get used(): boolean {
    return this.dead || (this.#plan?.used ?? false)
  }

  /** Never answers. */
  die(): Promise<never> {
    this.dead = true
    if (this.#plan) this.#plan.dead = true
    this.#death.resolve(undefined)
    return never()
  }

  orDeath<T>(work: Promise<T>): Promise<T | undefined> {
    work.catch(() => undefined)
    return Promise.race([work, this.#death.promise])
  }
}

/** The store as a mortal sees it: what it has sent is done, though it never hears of it. */
export function mortalStore(store: Store, cut: Cut): Store {
  const alive = <T>(call: () => Promise<T>): Promise<T> =>
    cut.dead ? never() : call().then((value) => (cut.dead ? never() : value))
  return {
    id: store.id,
    current: (o) => alive(() => store.current(o)),
    get: (kind, id, o) => alive(() => store.get(kind, id, o)),
    list: (kind, q, o) => alive(() => store.list(kind, q, o)),
    range: (prefix, q, o) => alive(() => store.range(prefix, q, o)),
    lease: (ttl_s) => alive(() => store.lease(ttl_s)),
    watch: (prefix, after, signal) => store.watch(prefix, after, signal),
    close: () => Promise.resolve(),
    txn: (checks, writes, token, o) =>
      alive(async () => {
        const outcome = await store.txn(checks, writes, token, o)
        if (outcome.ok && !outcome.repeated) cut.commits += 1
        if (cut.commits === cut.dieAfterCommit) await cut.die()
        return outcome
      }),
  }
}

/** Counts the calls on a bag of services (its functions, and those of objects in it), and cuts or fails where told. */
export function watched<D>(deps: D, cut: Cut, path = '', depth = 0): D {
  if (typeof deps !== 'object' || deps === null || depth > 2 || isPlainData(deps)) return deps
  return new Proxy(deps as object, {
    get(from, name) {
      const found: unknown = Reflect.get(from, name, from)
      if (typeof name === 'symbol') return found
      const here = path ? `${path}.${name}` : name
      if (typeof found === 'function')
        return (...args: unknown[]) => call(cut, here, () => Reflect.apply(found, from, args))
      const fixed = Reflect.getOwnPropertyDescriptor(from, name)
      return fixed && !fixed.configurable && !fixed.writable ? found : watched(found, cut, here, depth + 1)
    },
  }) as D
}

/** Arrays, maps and the like are data of the world, not services. */
function isPlainData(value: object): boolean {
  return Array.isArray(value) || value instanceof Map || value instanceof Set || value instanceof Promise
}

function call(cut: Cut, name: string, run: () => unknown): unknown {
  if (cut.dead) return never()
  cut.calls.push(name)
  if (cut.calls.length === cut.failAtCall) {
    throw new WadahError(fault('tool_failed', `${name} was made to fail by the test`, { effect: 'none' }))
  }
  const last = cut.calls.length === cut.dieAfterCall
  const result = run()
  if (!(result instanceof Promise)) return last ? cut.die() : result
  return result.then((value: unknown) => (cut.dead ? never() : last ? cut.die() : value))
}
