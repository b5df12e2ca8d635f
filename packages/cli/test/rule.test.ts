/** What `wadah rule create` asks for. */
import { expect, test } from 'vitest'
import { ruleOf } from '../src/commands/rule/create.ts'

test('kind, VMs and hosts as they were given; soft unless it is said to be hard', () => {
  expect(ruleOf('spread', { kind: 'apart', vmSelector: 'role=web' })).toEqual({
    name: 'spread',
    kind: 'apart',
    strict: false,
    selector: 'role=web',
  })
  expect(ruleOf('lic', { kind: 'not-on', vm: ['a', 'b'], host: ['h1'], hard: true })).toEqual({
    name: 'lic',
    kind: 'not-on',
    strict: true,
    vms: ['a', 'b'],
    hosts: ['h1'],
  })
})

test('what can not be meant is refused before anything is asked', () => {
  expect(() => ruleOf('x', { kind: 'near' })).toThrow(/--kind/)
  expect(() => ruleOf('x', { kind: 'apart', hard: true, soft: true })).toThrow(/--hard and --soft/)
})
