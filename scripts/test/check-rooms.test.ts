import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { clientProblem, cycleOf, importProblem, importsOf, lengthProblem, packageOf, ROOMS } from '../check-rooms.ts'

describe('importsOf', () => {
  it.each([
    [`import { a } from './a.ts'`, './a.ts', false],
    [`import type { A } from './a.ts'`, './a.ts', true],
    [`import { type A, b } from './a.ts'`, './a.ts', false],
    [`import {\n  a,\n  b,\n} from '@wadah/api/fault'`, '@wadah/api/fault', false],
    [`import 'reflect-metadata'`, 'reflect-metadata', false],
    [`import fs from "node:fs"`, 'node:fs', false],
    [`export * from './b.ts'`, './b.ts', false],
    [`export type { B } from './b.ts'`, './b.ts', true],
    [`const late = await import('./late.ts')`, './late.ts', false],
  ])('%s', (text, wanted, type_only) => {
    expect(importsOf(`const x = 1\n${text}\n`)).toEqual([{ wanted, type_only }])
  })

  it('takes no other text for an import', () => {
    expect(
      importsOf(`// import it from './a.ts' by hand\nconst text = "bytes from 'here'"\nexport const a = 1\n`),
    ).toEqual([])
  })
})

describe('importProblem', () => {
  const file = 'packages/cluster/src/vms/create.ts'
  const of = (wanted: string, from = file, dependencies = ['@wadah/api', '@wadah/store', 'pino']) =>
    importProblem(from.split('/')[1] as string, from, wanted, dependencies)

  it.each([
    '../jobs/define.ts',
    './view.ts',
    'node:path',
    '@wadah/api/fault',
    '@wadah/store/store',
    'pino',
    'pino/file',
  ])('allows %s', (wanted) => expect(of(wanted)).toBeUndefined())

  it.each([
    ['@wadah/host/engine/machine', 'cluster may import api, store, scheduler, ports; not host'],
    ['@wadah/ports/machine', '@wadah/ports/machine is not a dependency in packages/cluster/package.json'],
    ['@wadah/store/dist/store.js', 'name the module, not the folder'],
    ['../../../store/src/store.ts', 'leaves its package'],
    ['../../../clusters/src/a.ts', 'leaves its package'],
    ['fastify', 'fastify is not a dependency'],
  ])('refuses %s', (wanted, why) => expect(of(wanted)).toContain(why))

  it('refuses Node in the rooms that a browser will load', () => {
    expect(of('node:fs', 'packages/api/src/fault.ts')).toContain('browser')
    expect(of('node:fs', 'packages/ports/src/machine.ts')).toContain('browser')
  })
})

describe('the scheduler', () => {
  const of = (wanted: string, type_only: boolean) =>
    importProblem('scheduler', 'packages/scheduler/src/fits.ts', wanted, ['@wadah/api'], type_only)
  it('knows the contract by its types alone', () => {
    expect(of('@wadah/api/schema/vm', true)).toBeUndefined()
    expect(of('@wadah/api/schema/vm', false)).toContain('types only')
    expect(of('@wadah/store/store', true)).toContain('may import api')
    expect(of('node:fs', true)).toContain('browser')
  })
  it('is called by benchmarks, not by tests of the whole', () => {
    expect(clientProblem('bench', 'bench/a.ts', '@wadah/scheduler/drain')).toBeUndefined()
    expect(clientProblem('tests', 'tests/a.ts', '@wadah/scheduler/drain')).toContain('not scheduler')
  })
})

describe('the table of rooms', () => {
  it('keeps the rooms apart that must not know each other', () => {
    expect(ROOMS['cluster']).not.toContain('host')
    expect(ROOMS['cli']).toEqual(['api'])
    for (const alone of ['api', 'qmp', 'store']) expect(ROOMS[alone]).toEqual([])
  })

  it('has no circle', () => expect(cycleOf(new Map(Object.entries(ROOMS)))).toBeUndefined())
})

describe('clientProblem', () => {
  it.each(['@wadah/api/client', '../kit/daemon.ts', 'node:fs', 'vitest'])('allows %s', (wanted) =>
    expect(clientProblem('tests', 'tests/e2e/api.test.ts', wanted)).toBeUndefined(),
  )
  it.each([
    ['@wadah/daemon/main', 'it may import api; not daemon'],
    ['../../packages/host/src/engine/argv.ts', 'leaves tests/'],
    ['../../bench/kit.ts', 'leaves tests/'],
  ])('refuses %s', (wanted, why) => expect(clientProblem('tests', 'tests/e2e/api.test.ts', wanted)).toContain(why))
})

describe('cycleOf', () => {
  it('names the way round', () => {
    const graph = new Map([
      ['a', ['b']],
      ['b', ['c', 'd']],
      ['c', []],
      ['d', ['b']],
    ])
    expect(cycleOf(graph)).toEqual(['b', 'd', 'b'])
  })

  it('sees a file that imports itself', () => expect(cycleOf(new Map([['a', ['a']]]))).toEqual(['a', 'a']))

  it('finds a circle exactly where there is one, and every step of it is an import', () => {
    const graphs = fc.array(fc.array(fc.nat(7), { maxLength: 3 }), { minLength: 1, maxLength: 8 })
    fc.assert(
      fc.property(graphs, (rows) => {
        const graph = new Map(rows.map((to, i) => [`${i}`, to.filter((n) => n < rows.length).map(String)]))
        const circle = cycleOf(graph)
        if (circle) {
          expect(circle[0]).toBe(circle.at(-1))
          circle.slice(1).forEach((to, i) => expect(graph.get(circle[i] as string)).toContain(to))
        } else {
          // Without a circle, taking away files that import nothing takes away all of them.
          let left = new Map(graph)
          for (;;) {
            const kept = new Map([...left].filter(([, to]) => to.some((n) => left.has(n))))
            if (kept.size === left.size) break
            left = kept
          }
          expect(left.size).toBe(0)
        }
      }),
    )
  })
})

it('warns of a long file, refuses a very long one, leaves generated ones alone', () => {
  expect(lengthProblem('packages/host/src/a.ts', 600)).toBeUndefined()
  expect(lengthProblem('packages/host/src/a.ts', 601)).toMatchObject({ refused: false })
  expect(lengthProblem('packages/host/src/a.ts', 801)).toMatchObject({ refused: true })
  expect(lengthProblem('packages/qmp/src/generated/qmp-types.ts', 5000)).toBeUndefined()
})

it('knows the package of an import', () => {
  expect(packageOf('@fastify/cookie')).toBe('@fastify/cookie')
  expect(packageOf('@peculiar/x509/build')).toBe('@peculiar/x509')
  expect(packageOf('ajv/dist/2020.js')).toBe('ajv')
})
