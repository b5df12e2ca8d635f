import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { type QmpLogEntry, attachQmp } from '@wadah/qmp/client'
import { isQmpError } from '@wadah/qmp/errors'
import { FakeQemu, type Step } from '@wadah/qmp/testing/fake-qemu'
import { collect, connected, cutAt, failure } from './helpers.ts'

const error = { class: 'GenericError', desc: 'JSON parse error' }

describe('a peer that lies', () => {
  it.each<[string, Step[]]>([
    ['an answer with an id never used', [{ return: 'wrong', id: 4711 }, { return: 'right' }]],
    ['an id of another type', [{ return: 'wrong', id: 'x' }, { return: 'wrong', id: null }, { return: 'right' }]],
    ['an answer without an id', [{ return: 'wrong', id: undefined }, { return: 'right' }]],
    ['the same answer twice', [{ return: 'right' }, { return: 'wrong' }]],
    ['an error after the answer', [{ return: 'right' }, { error }]],
    ['a second greeting', [{ raw: '{"QMP":{}}\n' }, { return: 'right' }]],
    ['blank lines', [{ raw: '\r\n\n  \n' }, { return: 'right' }]],
    ['an event without data or time', [{ raw: '{"event":"STOP"}\n' }, { return: 'right' }]],
  ])('is ignored where it can be: %s', async (_, steps) => {
    const { qmp } = await connected({ handlers: { ask: steps } })
    await expect(qmp.executeAny('ask')).resolves.toBe('right')
    await expect(qmp.execute('query-status')).resolves.toBeDefined()
  })

  it.each<[string, Step]>([
    ['garbage', { raw: 'garbage\n' }],
    ['JSON that is no object', { raw: '[]\n' }],
    ['neither answer nor event', { raw: '{"x":1}\n' }],
    ['an event without a name', { raw: '{"event":7}\n' }],
    ['event data of the wrong type', { raw: '{"event":"STOP","data":[]}\n' }],
    ['a line without end', { raw: 'x'.repeat(5_000) }],
  ])('ends the connection where the framing is lost: %s', async (_, step) => {
    const { qmp } = await connected({ handlers: { ask: step } }, { max_line_bytes: 4_000 })
    const failed = await failure(qmp.executeAny('ask'))
    expect(failed).toMatchObject({ kind: 'protocol', command: 'ask', sent: true })
    await expect(qmp.closed).resolves.toMatchObject({ by: 'protocol', error: { kind: 'protocol' } })
    expect((await failure(qmp.execute('query-status'))).kind).toBe('closed')
  })

  it.each([[null], ['text'], [{}], [{ class: 1, desc: 2 }]])(
    'a malformed error %j fails that command only',
    async (bad) => {
      const { qmp } = await connected({ handlers: { ask: { error: bad } } })
      expect(await failure(qmp.executeAny('ask'))).toMatchObject({ kind: 'protocol', command: 'ask' })
      await expect(qmp.execute('query-status')).resolves.toBeDefined()
    },
  )

  it('an error without id belongs to the oldest command, for QEMU parses in order', async () => {
    const { qmp } = await connected({ handlers: { bad: { error, id: undefined }, slow: { stall: true } } })
    const bad = failure(qmp.executeAny('bad'))
    const slow = failure(qmp.executeAny('slow', {}, { timeout_ms: 20 }))
    expect(await bad).toMatchObject({ kind: 'command-failed', command: 'bad' })
    expect((await slow).kind).toBe('timeout')
  })

  it('answers before the question are kept for nobody', async () => {
    const log: QmpLogEntry[] = []
    const { qemu, qmp } = await connected({}, { log: (entry) => log.push(entry) })
    qemu.say({ return: 'early', id: 2 })
    await expect.poll(() => log.some(({ what }) => what === 'anomaly')).toBe(true)
    await expect(qmp.execute('query-status')).resolves.toMatchObject({ status: 'running' })
  })

  it('a broken log or listener harms nobody', async () => {
    const { qemu, qmp } = await connected(
      {},
      {
        log: () => {
          throw new Error('disk full')
        },
      },
    )
    qmp.subscribe(() => {
      throw new Error('listener')
    })
    qmp.subscribe((async () => {
      throw new Error('async listener')
    }) as () => void)
    const stopped = qmp.waitFor('STOP', undefined, { timeout_ms: 5_000 })
    qemu.emit('STOP')
    await stopped
    await expect(qmp.execute('query-status')).resolves.toBeDefined()
  })

  it('whatever bytes come, every promise settles and the connection says why it ended', async () => {
    const junk = fc.oneof(
      fc.uint8Array({ maxLength: 40 }),
      fc.json().map((text) => Buffer.from(`${text}\n`)),
      fc
        .record(
          {
            id: fc.oneof(fc.integer({ min: 0, max: 6 }), fc.jsonValue()),
            return: fc.jsonValue(),
            error: fc.jsonValue(),
            event: fc.oneof(fc.constant('STOP'), fc.jsonValue()),
            data: fc.jsonValue(),
            timestamp: fc.jsonValue(),
            QMP: fc.jsonValue(),
          },
          { requiredKeys: [] },
        )
        .map((message) => Buffer.from(`${JSON.stringify(message)}\r\n`)),
    )
    await fc.assert(
      fc.asyncProperty(
        fc.array(junk, { maxLength: 12 }),
        fc.infiniteStream(fc.integer({ min: 1, max: 50 })),
        async (lies, sizes) => {
          const qemu = new FakeQemu({ handlers: { ask: { stall: true } }, cut: (bytes) => cutAt(bytes, sizes) })
          const qmp = await attachQmp(qemu.stream())
          const events = collect(qmp.events(new AbortController().signal))
          const waiting = [
            qmp.executeAny('ask'),
            qmp.executeAny('ask', {}, { timeout_ms: 10_000 }),
            qmp.waitFor('RESUME', undefined, { timeout_ms: 10_000 }),
          ]
          const settled = Promise.allSettled(waiting)
          await qemu.came('ask', 2)
          for (const raw of lies) qemu.say({ raw })
          qemu.drop()
          for (const result of await settled)
            if (result.status === 'rejected') expect(isQmpError(result.reason)).toBe(true)
          expect((await qmp.closed).by).toMatch(/peer|protocol/)
          await events
          await qemu.close()
        },
      ),
      { numRuns: 150 },
    )
  })

  it('a connection cut after any number of bytes settles everything', async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 0, max: 900 }), async (drop_after_bytes) => {
        const qemu = new FakeQemu({
          drop_after_bytes,
          handlers: { ask: [{ event: 'STOP' }, { return: 'x'.repeat(200) }] },
        })
        const work = async (): Promise<void> => {
          const qmp = await attachQmp(qemu.stream())
          const asked = [1, 2, 3].map(() => qmp.executeAny('ask'))
          await Promise.allSettled(asked)
          await Promise.all(asked)
          await qmp.close()
        }
        const outcome = await work().catch((thrown: unknown) => thrown)
        expect(outcome === undefined || isQmpError(outcome)).toBe(true)
        await qemu.close()
      }),
      { numRuns: 100 },
    )
  })
})
