import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { type QmpEvent, type QmpLogEntry, attachQmp } from '@wadah/qmp/client'
import { isCommandError } from '@wadah/qmp/errors'
import { FakeQemu, GREETING } from '@wadah/qmp/testing/fake-qemu'
import { closing, connected, cutAt, failure } from './helpers.ts'

describe('connecting', () => {
  it('negotiates and knows the version', async () => {
    const { qemu, qmp } = await connected()
    expect(qmp.version).toEqual({ major: 7, minor: 2, micro: 22, package: 'fake' })
    expect(qemu.received.map(({ command }) => command)).toEqual(['qmp_capabilities'])
  })

  it.each([
    ['silence', [], 'connect-failed', 'another client'],
    ['garbage', [{ raw: 'SSH-2.0-OpenSSH\n' }], 'protocol', 'not JSON'],
    ['another protocol', [{ raw: '{"hello":1}\n' }], 'protocol', 'not a QMP monitor'],
    ['an event before the greeting', [{ event: 'STOP' }], 'protocol', 'not a QMP monitor'],
    ['an end', [{ drop: true }], 'connect-failed', 'before its greeting'],
  ] as const)('refuses %s instead of a greeting', async (_, greeting, kind, text) => {
    const qemu = closing(new FakeQemu({ greeting }))
    const error = await failure(attachQmp(qemu.stream(), { greeting_timeout_ms: 20 }))
    expect(error).toMatchObject({ kind, message: expect.stringContaining(text) })
  })

  it.each([
    ['refused', { error: { class: 'CommandNotFound', desc: 'no' } }],
    ['unanswered', { stall: true }],
    ['cut off', { drop: true }],
  ] as const)('fails when the negotiation is %s', async (_, answer) => {
    const qemu = closing(new FakeQemu({ handlers: { qmp_capabilities: answer } }))
    const error = await failure(attachQmp(qemu.stream(), { greeting_timeout_ms: 20 }))
    expect(error).toMatchObject({ kind: 'connect-failed', message: expect.stringContaining('qmp_capabilities') })
  })

  it('gives up when the process is gone or the signal fires', async () => {
    const silent = closing(new FakeQemu({ greeting: [] }))
    const gone = await failure(attachQmp(silent.stream(), { gone: Promise.resolve() }))
    expect(gone).toMatchObject({ kind: 'connect-failed', message: expect.stringContaining('went away') })
    const aborted = await failure(attachQmp(silent.stream(), { signal: AbortSignal.abort() }))
    expect(aborted.kind).toBe('aborted')
  })
})

describe('execute', () => {
  it('gives results and errors back to their own callers', async () => {
    const { qemu, qmp } = await connected({
      handlers: { cont: { error: { class: 'DeviceNotActive', desc: 'not now' } } },
    })
    await expect(qmp.execute('query-status')).resolves.toMatchObject({ status: 'running' })
    const error = await failure(qmp.execute('cont'))
    expect(error).toMatchObject({ kind: 'command-failed', class: 'DeviceNotActive', command: 'cont', sent: true })
    expect(isCommandError(error, 'DeviceNotActive')).toBe(true)
    await failure(qmp.executeAny('x-unknown', { a: 1 }))
    expect(qemu.received.at(-1)).toMatchObject({ command: 'x-unknown', args: { a: 1 } })
  })

  it('resolves the right promises in whatever order the answers come', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc
          .array(fc.boolean(), { minLength: 1, maxLength: 12 })
          .chain((oks) => fc.tuple(fc.constant(oks), fc.shuffledSubarray([...oks.keys()], { minLength: oks.length }))),
        fc.infiniteStream(fc.integer({ min: 1, max: 40 })),
        async ([oks, order], sizes) => {
          const gates = oks.map(() => Promise.withResolvers<void>())
          const qemu = new FakeQemu({
            cut: (bytes) => cutAt(bytes, sizes),
            handlers: {
              ask: ({ args }) => {
                const n = Number(args.n)
                const error = { class: 'GenericError', desc: `no ${n}` }
                return [{ until: gates[n]?.promise as Promise<void> }, oks[n] ? { return: n } : { error }]
              },
            },
          })
          const qmp = await attachQmp(qemu.stream())
          const asked = Promise.allSettled(oks.map((_, n) => qmp.executeAny('ask', { n })))
          for (const n of order) {
            gates[n]?.resolve()
            await Promise.resolve()
          }
          const results = await asked
          results.forEach((result, n) => {
            if (result.status === 'fulfilled') expect([oks[n], result.value]).toEqual([true, n])
            else expect(result.reason.message).toContain(`no ${n}`)
          })
          await qmp.close()
          await qemu.close()
        },
      ),
      { numRuns: 50 },
    )
  })

  it('survives a command that is too slow, and drops its late answer', async () => {
    const late = Promise.withResolvers<void>()
    const log: QmpLogEntry[] = []
    const slow = [{ until: late.promise }, { return: 'late' }]
    const { qmp } = await connected({ handlers: { slow } }, { log: (entry) => log.push(entry) })
    const error = await failure(qmp.executeAny('slow', {}, { timeout_ms: 5 }))
    expect(error).toMatchObject({ kind: 'timeout', command: 'slow', sent: true })
    expect(qmp.unanswered).toBe(1)
    late.resolve()
    await expect(qmp.execute('query-status')).resolves.toBeDefined()
    await expect.poll(() => qmp.unanswered).toBe(0)
    expect(log.some(({ what, command }) => what === 'late' && command === 'slow')).toBe(true)
  })

  it('sends nothing when already aborted, and stops waiting when aborted later', async () => {
    const { qemu, qmp } = await connected({ handlers: { slow: { stall: true } } })
    const before = await failure(qmp.executeAny('never', {}, { signal: AbortSignal.abort() }))
    expect(before).toMatchObject({ kind: 'aborted', sent: false })
    const abort = new AbortController()
    const waiting = failure(qmp.executeAny('slow', {}, { signal: abort.signal }))
    await qemu.came('slow')
    abort.abort()
    expect(await waiting).toMatchObject({ kind: 'aborted', sent: true })
    expect(qemu.received.some(({ command }) => command === 'never')).toBe(false)
  })

  it('never has so many wait at QEMU that it stops reading: out of band gets through, and the rest follows in order', async () => {
    const go = Promise.withResolvers<void>()
    const { qemu, qmp } = await connected({
      handlers: { slow: [{ until: go.promise }, { return: 1 }], yank: { return: {} } },
    })
    const many = Array.from({ length: 20 }, () => qmp.executeAny('slow'))
    const late = failure(qmp.executeAny('late', {}, { timeout_ms: 20 }))
    await qmp.executeAny('yank', { instances: [] }, { oob: true })
    expect(qemu.received.filter(({ command }) => command === 'slow').length).toBeLessThan(8)
    expect(qemu.received.at(-1)).toMatchObject({ command: 'yank', oob: true })
    // What was given up before it was sent never is.
    expect(await late).toMatchObject({ kind: 'timeout', sent: false })
    expect(qmp.unanswered).toBe(20)
    go.resolve()
    expect(await Promise.all(many)).toHaveLength(20)
    await qmp.execute('query-status')
    expect(qemu.received.some(({ command }) => command === 'late')).toBe(false)
  })

  it('asks in band where QEMU offers nothing else', async () => {
    const greeting = { QMP: { ...GREETING.QMP, capabilities: [] } }
    const { qemu, qmp } = await connected({
      greeting: [{ raw: `${JSON.stringify(greeting)}\r\n` }],
      handlers: { yank: { return: {} } },
    })
    await qmp.executeAny('yank', {}, { oob: true })
    expect(qemu.received.map(({ command, args, oob }) => [command, args, oob])).toEqual([
      ['qmp_capabilities', {}, undefined],
      ['yank', {}, undefined],
    ])
  })

  it('refuses more commands than QEMU could ever be asked', async () => {
    const { qmp } = await connected({ handlers: { slow: { stall: true } } })
    const many = Array.from({ length: 1_000 }, () => failure(qmp.executeAny('slow')))
    expect(await failure(qmp.execute('query-status'))).toMatchObject({ kind: 'limit', sent: false })
    await qmp.close()
    expect((await Promise.all(many)).every(({ kind }) => kind === 'closed')).toBe(true)
  })

  it('tells how long QEMU was silent', async () => {
    let now = 0
    const { qmp } = await connected({}, { now_ms: () => now })
    now = 700
    expect(qmp.silent_ms).toBe(700)
    await qmp.execute('query-status')
    expect(qmp.silent_ms).toBe(0)
  })

  it('logs no arguments and no results', async () => {
    const log: QmpLogEntry[] = []
    const { qmp } = await connected(
      { handlers: { set_password: { return: 'answer-secret' } } },
      { log: (entry) => log.push(entry) },
    )
    await qmp.executeAny('set_password', { password: 'argument-secret' })
    expect(JSON.stringify(log)).toContain('set_password')
    expect(JSON.stringify(log)).not.toContain('secret')
  })

  it('fails at once after the end', async () => {
    const { qmp } = await connected()
    await qmp.close()
    expect(await failure(qmp.execute('query-status'))).toMatchObject({ kind: 'closed', sent: false })
    await qmp.close()
  })
})

describe('the end', () => {
  it('says who ended it, and rejects what waits', async () => {
    const { qemu, qmp } = await connected({ handlers: { slow: { stall: true } } })
    const waiting = [failure(qmp.executeAny('slow')), failure(qmp.waitFor('STOP', undefined, { timeout_ms: 10_000 }))]
    await qemu.came('slow')
    qemu.drop()
    await expect(qmp.closed).resolves.toMatchObject({ by: 'peer' })
    expect((await Promise.all(waiting)).map(({ kind }) => kind)).toEqual(['closed', 'closed'])
  })

  it('is ours when we close', async () => {
    const { qmp } = await connected()
    void qmp.close()
    await expect(qmp.closed).resolves.toMatchObject({ by: 'us' })
  })

  it('still delivers what QEMU said before it', async () => {
    const { qmp } = await connected()
    const events: QmpEvent[] = []
    qmp.subscribe((event) => events.push(event))
    await expect(qmp.execute('quit')).resolves.toEqual({})
    await qmp.closed
    expect(events.map(({ event }) => event)).toEqual(['SHUTDOWN'])
  })
})
