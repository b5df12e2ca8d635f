/** Random transactions against the store and a plain map, side by side. */
import fc from 'fast-check'
import { expect } from 'vitest'
import type { Change, Check, Kind, Rec, Store, Write } from '../store.ts'
import { absent, atRevision, atVersion, del, exists, put } from '../store.ts'
import { changesUpTo, page } from './read.ts'

const kinds: Kind<number>[] = [{ name: 'a' }, { name: 'a/b' }, { name: 'b' }]
const ids = ['x', 'x/1', 'y']

type Model = { revision: number; recs: Map<string, Rec<unknown>> }
type Outcome = { ok: boolean; revision: number }

const key = (kind: string, id: string) => `${kind}:${id}`

function holds(check: Check, rec: Rec<unknown> | undefined): boolean {
  if (check.is === 'absent') return rec === undefined
  if (check.is === 'exists') return rec !== undefined
  return check.is === 'revision' ? rec?.modified === check.modified : rec?.version === check.version
}

function apply(model: Model, checks: readonly Check[], writes: readonly Write[], log: string[]): Outcome {
  if (!checks.every((c) => holds(c, model.recs.get(key(c.kind, c.id))))) return { ok: false, revision: model.revision }
  const revision = model.revision + 1
  let changed = false
  for (const w of writes) {
    const k = key(w.kind, w.id)
    const old = model.recs.get(k)
    if (w.op === 'delete') {
      if (!old) continue
      model.recs.delete(k)
      log.push(`${revision} delete ${k} ${JSON.stringify(old.value)}`)
    } else {
      model.recs.set(k, {
        kind: w.kind,
        id: w.id,
        value: w.value,
        created: old?.created ?? revision,
        modified: revision,
        version: (old?.version ?? 0) + 1,
      })
      log.push(`${revision} put ${k} ${JSON.stringify(w.value)}`)
    }
    changed = true
  }
  if (changed) model.revision = revision
  return { ok: true, revision: model.revision }
}

const place = fc.record({ kind: fc.constantFrom(...kinds), id: fc.constantFrom(...ids) })
const check: fc.Arbitrary<Check> = fc.oneof(
  place.map((p) => absent(p.kind, p.id)),
  place.map((p) => exists(p.kind, p.id)),
  fc.tuple(place, fc.integer({ min: 1, max: 12 })).map(([p, n]) => atRevision(p.kind, p.id, n)),
  fc.tuple(place, fc.integer({ min: 1, max: 3 })).map(([p, n]) => atVersion(p.kind, p.id, n)),
)
const write: fc.Arbitrary<Write> = fc.oneof(
  { weight: 3, arbitrary: fc.tuple(place, fc.integer()).map(([p, n]) => put(p.kind, p.id, n)) },
  { weight: 1, arbitrary: place.map((p) => del(p.kind, p.id)) },
)
const command = fc.record({
  checks: fc.array(check, { maxLength: 2 }),
  writes: fc.uniqueArray(write, { maxLength: 4, selector: (w) => key(w.kind, w.id) }),
  /** Sent again with the same token: right away, or together with the next ones. */
  repeat: fc.boolean(),
  /** Waits for the answer before the next one is sent. */
  wait: fc.boolean(),
})

const sorted = (model: Model) =>
  [...model.recs.values()].sort((a, b) => (key(a.kind, a.id) < key(b.kind, b.id) ? -1 : 1))

/** @throws when the store and the model differ */
export async function modelTest(make: () => Promise<Store>, runs = 40): Promise<void> {
  await fc.assert(
    fc.asyncProperty(fc.array(command, { minLength: 1, maxLength: 25 }), async (commands) => {
      const store = await make()
      const model: Model = { revision: 0, recs: new Map() }
      const log: string[] = []
      const states: Rec<unknown>[][] = [[]]
      const answers: Promise<void>[] = []
      for (const [i, c] of commands.entries()) {
        const token = `token-${i}`
        const want = apply(model, c.checks, c.writes, log)
        const changed = model.revision === states.length
        if (changed) states.push(sorted(model))
        const send = async (repeated: boolean) => {
          const got = await store.txn(c.checks, c.writes, token)
          expect({ ok: got.ok, revision: got.revision }).toEqual(want)
          if (got.ok) expect(got.repeated).toBe(repeated)
        }
        answers.push(send(false))
        // Only what changed something is remembered; the rest is judged anew, which is the same right after.
        if (c.repeat) answers.push(send(changed))
        if (c.wait) await Promise.all(answers)
      }
      await Promise.all(answers)
      expect(await store.current()).toBe(model.revision)

      const text = (x: Change) =>
        `${x.revision} ${x.type} ${key(x.kind, x.id)} ${JSON.stringify(x.type === 'put' ? x.rec.value : x.before?.value)}`
      for (const after of new Set([0, Math.floor(model.revision / 2), model.revision])) {
        const all = await changesUpTo(store, '', after, model.revision)
        expect(all.map(text)).toEqual(log.filter((line) => Number(line.split(' ')[0]) > after))
      }
      const some = await changesUpTo(store, 'a:', 0, model.revision)
      expect(some.map(text)).toEqual(log.filter((line) => line.includes(' a:')))

      for (const [at, state] of states.entries()) {
        const items: Rec<unknown>[] = []
        let cursor: string | undefined
        do {
          const part = page(await store.range('', { limit: 2, at, ...(cursor && { cursor }) }))
          items.push(...part.items)
          cursor = part.cursor
        } while (cursor)
        expect(items).toEqual(state)
      }
      await store.close()
    }),
    { numRuns: runs },
  )
}
