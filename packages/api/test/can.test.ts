/** The one table of what a VM may do now. */
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type CanContext, can, canAll } from '../src/can.ts'
import { PAUSED_BY, VM_ACTIONS, VM_STATES, type VmAction, type VmState } from '../src/schema/vm.ts'

const ctx = (state: VmState, more: Partial<CanContext> = {}, vm: Partial<CanContext['vm']> = {}): CanContext => ({
  vm: { name: 'web', state, ...vm },
  scope: 'full',
  ...more,
})
const possible = (context: CanContext) =>
  Object.entries(canAll(context))
    .filter(([, v]) => v.ok)
    .map(([action]) => action)
    .sort()

describe('in each state', () => {
  const table: Record<VmState, VmAction[]> = {
    absent: [],
    stopped: ['clone', 'delete', 'edit', 'migrate', 'revert', 'snapshot', 'start'],
    starting: ['stop'],
    prepared: ['console', 'edit', 'resume', 'revert', 'stop'],
    running: ['console', 'edit', 'exec', 'migrate', 'pause', 'reset', 'revert', 'shutdown', 'snapshot', 'stop'],
    paused: ['console', 'edit', 'migrate', 'reset', 'resume', 'revert', 'snapshot', 'stop'],
    suspended: ['console', 'edit', 'resume', 'revert', 'stop'],
    panicked: ['console', 'edit', 'reset', 'revert', 'stop'],
    'internal-error': ['console', 'edit', 'reset', 'revert', 'stop'],
    saving: ['stop'],
    incoming: ['stop'],
    'postcopy-paused': ['stop'],
    postmigrate: ['stop'],
    stopping: ['stop'],
    unknown: ['stop'],
  }
  test.each(VM_STATES)('%s', (state) => {
    expect(possible(ctx(state))).toEqual(table[state])
  })
})

describe('while a job is at work', () => {
  const job = (kind: string) => ({ job: { id: 'job-aaaaaaaaaa', kind } })
  test.each([
    ['vm.start', 'starting', ['stop']],
    ['vm.start', 'running', ['console', 'exec', 'stop']],
    ['vm.shutdown', 'running', ['console', 'reset', 'stop']],
    ['vm.stop', 'running', ['console']],
    ['vm.create', 'absent', []],
    ['vm.create', 'running', ['console', 'exec']],
    ['vm.delete', 'stopped', []],
    ['snapshot.create', 'running', ['console', 'stop']],
    ['snapshot.delete', 'running', ['console', 'exec', 'stop']],
    ['volume.move', 'running', ['console', 'exec', 'reset', 'stop']],
    ['something.new', 'running', []],
  ] as const)('%s, %s', (kind, state, actions) => {
    expect(possible(ctx(state, job(kind)))).toEqual(actions)
  })
  test('names the job and how to wait for it', () => {
    expect(can('start', ctx('stopped', job('vm.delete')))).toMatchObject({
      ok: false,
      why: { code: 'busy', status: 409, effect: 'none', remedy: 'wadah job wait job-aaaaaaaaaa' },
    })
  })
})

describe('a protected VM', () => {
  test('is not deleted, and the refusal says how it could be', () => {
    expect(can('delete', ctx('stopped', {}, { protected: true }))).toMatchObject({
      ok: false,
      why: { code: 'protected', status: 409, remedy: 'wadah vm edit web --unprotect' },
    })
    expect(possible(ctx('stopped', {}, { protected: true }))).toEqual([
      'clone',
      'edit',
      'migrate',
      'revert',
      'snapshot',
      'start',
    ])
  })
})

describe('who asks', () => {
  test('may only look: nothing, with the reason, whatever the state', () => {
    for (const state of VM_STATES) {
      for (const action of VM_ACTIONS) {
        expect(can(action, ctx(state, { scope: 'read' }))).toMatchObject({ ok: false, why: { code: 'forbidden' } })
      }
    }
  })
})

describe('the words of a refusal', () => {
  test.each([
    ['start', ctx('running'), 'wrong_state', '"web" is running', undefined],
    ['shutdown', ctx('stopped'), 'wrong_state', 'is stopped; shutdown needs it running', undefined],
    [
      'exec',
      ctx('paused', {}, { paused_by: 'io-error' }),
      'wrong_state',
      'paused (by io-error)',
      'wadah vm resume web',
    ],
    ['pause', ctx('stopped'), 'wrong_state', 'pause needs it running', 'wadah vm start web'],
    ['clone', ctx('paused'), 'wrong_state', 'clone needs it stopped', 'wadah vm stop web'],
    ['delete', ctx('running'), 'wrong_state', 'delete needs it stopped', 'wadah vm shutdown web'],
    ['exec', ctx('running', {}, { agent: 'absent' }), 'agent_silent', 'No guest agent', 'install qemu-guest-agent'],
    ['shutdown', ctx('unknown'), 'wrong_state', 'is unknown', 'wadah vm stop web'],
    ['stop', ctx('stopped'), 'wrong_state', 'is stopped', undefined],
  ] as const)('%s', (action, context, code, detail, remedy) => {
    const verdict = can(action, context)
    if (verdict.ok) throw new Error('it was allowed')
    expect(verdict.why.code).toBe(code)
    expect(verdict.why.detail).toContain(detail)
    if (remedy === undefined) expect(verdict.why.remedy).toBeUndefined()
    else expect(verdict.why.remedy).toContain(remedy)
  })

  test('always say what is wrong, and never advise what would be refused', () => {
    const context = fc.record({
      vm: fc.record({
        name: fc.constant('web'),
        state: fc.constantFrom(...VM_STATES),
        paused_by: fc.constantFrom(undefined, ...PAUSED_BY),
        agent: fc.constantFrom(undefined, 'unknown' as const, 'connected' as const, 'absent' as const),
      }),
      scope: fc.constantFrom('read' as const, 'full' as const),
    })
    fc.assert(
      fc.property(context, fc.constantFrom(...VM_ACTIONS), (c, action) => {
        const verdict = can(action, c)
        expect(verdict.ok).toBe(canAll(c)[action].ok)
        if (verdict.ok) return
        expect(verdict.why.detail).not.toBe('')
        const advised = /^wadah vm (\w+) web/.exec(verdict.why.remedy ?? '')?.[1] as VmAction | undefined
        if (advised)
          expect([action, c.vm.state, advised, can(advised, c).ok]).toEqual([action, c.vm.state, advised, true])
      }),
      { numRuns: 500 },
    )
  })
})
