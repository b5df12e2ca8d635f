/** The harness itself: it passes good jobs and catches bad ones. */
import { fault, WadahError } from '@wadah/api/fault'
import { type AnyStep, defineJob, pivot, step } from '@wadah/cluster/jobs/define'
import { type CheckOptions, checkJob } from '@wadah/cluster/jobs/testing'
import { absent, del, type Kind, put, type Store } from '@wadah/store/store'
import { describe, expect, test } from 'vitest'

/** A disk with named files, which a job can change in two calls each: a half-done step is possible. */
class Disk {
  files = new Map<string, string>()
  async has(name: string) {
    return this.files.has(name)
  }
  async make(name: string) {
    this.files.set(name, '')
  }
  async fill(name: string, text: string) {
    this.files.set(name, (this.files.get(name) ?? '') + text)
  }
  async read(name: string) {
    return this.files.get(name)
  }
  async remove(name: string) {
    this.files.delete(name)
  }
}
type D = { disk: Disk; store: Store }
type P = { name: string }
type S = AnyStep<P, D>
const nameKind: Kind<{ id: string }> = { name: 'file/name' }
const parse = (v: unknown) => v as P

const check = (steps: S[], options: Partial<CheckOptions<P, D>> & { onCrash?: 'undo' | 'continue' } = {}) => {
  const { onCrash = 'continue', ...rest } = options
  return checkJob<P, D>({
    definition: defineJob<P, D>('file.make', 1, parse, steps, { onCrash, claims: (p) => [`file/${p.name}`] }),
    params: { name: 'x' },
    world: () => {
      const disk = new Disk()
      disk.files.set('old', 'keep me')
      return { deps: (store) => ({ disk, store }), snapshot: () => Object.fromEntries(disk.files) }
    },
    ...rest,
  })
}

const make: S = step('make', {
  do: async ({ deps, params }) => {
    if (!(await deps.disk.has(params.name))) await deps.disk.make(params.name)
  },
  undo: ({ deps, params }) => deps.disk.remove(params.name),
})
const fill: S = step('fill', {
  do: async ({ deps, params }) => {
    if ((await deps.disk.read(params.name)) === '') await deps.disk.fill(params.name, 'text')
  },
  undo: ({ deps, params }) => deps.disk.remove(params.name),
})
const record: S = step('record', {
  do: async ({ deps, params, jobId, commit }) => {
    if ((await deps.store.get(nameKind, params.name))?.value.id === jobId) return
    commit([put(nameKind, params.name, { id: jobId })], [absent(nameKind, params.name)])
  },
  undo: ({ params, commit }) => commit([del(nameKind, params.name)]),
})
const dropOld: S = pivot('drop-old', { do: ({ deps }) => deps.disk.remove('old') })
const mark: S = step('mark', {
  do: async ({ deps }) => {
    if (!(await deps.disk.has('marked'))) await deps.disk.make('marked')
  },
})

describe('good jobs pass', () => {
  test('do and undo', async () => {
    const tried = await check([make, fill, record])
    expect(tried).toContain('fill twice')
    expect(tried).toContain('the daemon dies when record has done its work')
    expect(tried.some((name) => name.startsWith('the daemon dies after call 4'))).toBe(true)
    expect(tried.length).toBeGreaterThan(30)
  })
  test('with a pivot', async () => {
    expect((await check([make, fill, record, dropOld, mark])).length).toBeGreaterThan(40)
  })
  test('undone after a crash', async () => {
    await check([make, fill, record, dropOld, mark], { onCrash: 'undo' })
  })
  test('volatile steps before and after a pivot', async () => {
    await check([{ ...make, volatile: true }, { ...fill, volatile: true }, dropOld, { ...mark, volatile: true }])
  })
  test('a step that tries again by itself', async () => {
    await check([{ ...make, retry: { attempts: 3, base_ms: 1, cap_ms: 1 } }, fill])
  })
})

describe('bad jobs are caught', () => {
  const caught = async (steps: S[], why: RegExp) => {
    const error = await check(steps).then(
      () => undefined,
      (e: unknown) => e,
    )
    expect(error).toBeInstanceOf(AggregateError)
    expect((error as AggregateError).message).toMatch(why)
  }
  test('a do that does not look before it acts', async () => {
    const blind: S = { ...fill, do: ({ deps, params }) => deps.disk.fill(params.name, 'text') }
    await caught([make, blind], /fill twice: done, but not as when undisturbed/)
  })
  test('a do that refuses to run again', async () => {
    const strict: S = {
      ...make,
      do: async ({ deps, params }) => {
        if (await deps.disk.has(params.name)) throw new WadahError(fault('name_taken', 'there is one'))
        await deps.disk.make(params.name)
      },
    }
    await caught([strict, fill], /make twice: it ended failed, expected done/)
  })
  test('a missing undo', async () => {
    const { undo: _, ...oneWay } = make
    await caught([oneWay, record], /record fails at once: failed, but not everything was undone/)
  })
  test('an undo that only accepts a finished do', async () => {
    const strict: S = {
      ...make,
      undo: async ({ deps, params }) => {
        if (!(await deps.disk.has(params.name))) throw new Error('it is not there')
        await deps.disk.remove(params.name)
      },
    }
    const error = await check([strict], { limit_ms: 300 }).catch((e: unknown) => e)
    expect(String((error as AggregateError).message)).toMatch(/make fails at once: the job did not end/)
  })
  test('work done in two calls, of which a crash leaves one', async () => {
    const torn: S = step('torn', {
      do: async ({ deps, params }) => {
        if (await deps.disk.has(params.name)) return
        await deps.disk.make(params.name)
        await deps.disk.fill(params.name, 'text')
      },
      undo: ({ deps, params }) => deps.disk.remove(params.name),
    })
    await caught([torn], /the daemon dies after call 2 \(disk.make\): done, but not as when undisturbed/)
  })
  test('a pivot that says it did nothing when it has', async () => {
    const liar: S = pivot('go', {
      do: async ({ deps }) => {
        await deps.disk.remove('old')
        await deps.disk.make('new')
      },
    })
    await caught([make, liar], /\(disk.make\) fails: failed, but not everything was undone/)
  })
  test('a record that is left behind', async () => {
    const { undo: _, ...oneWay } = record
    await caught([oneWay, make], /make fails at once: failed, but not everything was undone/)
  })
  test('a job that fails even when nothing disturbs it', async () => {
    await caught([step('no', { do: () => Promise.reject(new Error('no')) })], /undisturbed: it ended failed/)
  })
})
