import { X509Certificate } from 'node:crypto'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import type { QmpEvent } from '@wadah/qmp/client'
import { makeMoveCa, moveIdentity } from '../../src/engine/migration/certificates.ts'
import { Outgoing, claimOf, goOnHere, seenOf } from '../../src/engine/migration/outgoing.ts'
import { tcpUri } from '../../src/engine/migration/setup.ts'
import { settled } from '../../src/engine/migration/settled.ts'
import { allowUserfaults, postcopySupport } from '../../src/engine/migration/userfault.ts'
import type { RunningVm } from '../../src/engine/running-vm.ts'
import { Wall, tickOffset } from '../../src/engine/migration/wall.ts'

describe('the identity of one end of a move', () => {
  test('a certificate of two days, for one name, of a CA that is nobody else’s', async () => {
    const now = Date.now()
    const mine = await moveIdentity('source-1.job-aaaaaaaaaa.move', 'source', now)
    const other = await moveIdentity('target-1.job-aaaaaaaaaa.move', 'target', now)
    const [cert, ca] = [new X509Certificate(mine.cert), new X509Certificate(mine.ca)]
    expect(cert.subject).toBe('CN=source-1.job-aaaaaaaaaa.move')
    expect(cert.verify(ca.publicKey)).toBe(true)
    expect(cert.verify(new X509Certificate(other.ca).publicKey)).toBe(false)
    expect([cert.ca, ca.ca]).toEqual([false, true])
    expect(cert.validToDate.getTime() - now).toBeLessThanOrEqual(48 * 3_600_000)
    expect(cert.validFromDate.getTime()).toBeLessThan(now)
    expect(cert.keyUsage).toEqual(['1.3.6.1.5.5.7.3.2'])
    expect(new X509Certificate(other.cert).keyUsage).toEqual(['1.3.6.1.5.5.7.3.1'])
    expect(new X509Certificate(other.cert).checkHost('target-1.job-aaaaaaaaaa.move')).toBeDefined()
  })
  test('of a CA that is given', async () => {
    const ca = await makeMoveCa('moves', Date.now())
    const mine = await moveIdentity('a.move', 'source', Date.now(), ca)
    expect(mine.ca).toBe(ca.cert.toString('pem'))
  })
})

describe('parts', () => {
  test.each([
    [{ host: '10.0.0.1', port: 5 }, 'tcp:10.0.0.1:5'],
    [{ host: 'fd00::1', port: 0 }, 'tcp:[fd00::1]:0'],
  ])('%o → %s', (address, uri) => expect(tcpUri(address)).toBe(uri))
  test.each([[{ host: 'exec:rm', port: 1 }], [{ host: '1.2.3.4,x=y', port: 1 }], [{ host: '1.2.3.4', port: 70_000 }]])(
    'refused: %o',
    (address) => expect(() => tcpUri(address)).toThrow('no address'),
  )

  test('an answer that is read after an event is not believed where it is older', async () => {
    let say: (event: QmpEvent) => void = () => {}
    const answer = Promise.withResolvers<{ status: string }>()
    const out = new Outgoing({
      subscribe: (hear: typeof say) => ((say = hear), () => {}),
      gone: new Promise(() => {}),
      execute: () => answer.promise,
    } as unknown as RunningVm)
    const looked = out.look()
    // In one chunk of the monitor: the answer's reader comes to its turn only after both.
    answer.resolve({ status: 'postcopy-active' })
    const timestamp = { seconds: 1, microseconds: 0 }
    say({ event: 'MIGRATION', data: { status: 'postcopy-paused' }, timestamp } as QmpEvent)
    await looked
    expect(out.status).toBe('postcopy-paused')
    await out.look()
    expect(out.status).toBe('postcopy-active')
  })

  test('a QEMU that was cancelled just as it came to its pause before the switch is told to go on, and then cancels', async () => {
    const said: unknown[] = []
    let [migration, state] = ['active', 'finish-migrate']
    const answers: Record<string, () => unknown> = {
      'query-migrate': () => ({ status: migration }),
      migrate_cancel: () => (migration = 'cancelling'),
      'migrate-continue': () => ([migration, state] = ['cancelled', 'postmigrate']),
      cont: () => (state = 'running'),
    }
    const running = {
      status: async () => state,
      execute: async (command: string, args?: unknown) => {
        if (command !== 'query-migrate') said.push(args ? [command, args] : command)
        return answers[command]?.()
      },
    } as unknown as RunningVm
    await goOnHere(running, false)
    expect(said).toEqual(['migrate_cancel', ['migrate-continue', { state: 'cancelling' }], 'cont'])
  })

  test('what QEMU says of itself', () => {
    const ram = {
      remaining: 7,
      transferred: 5,
      total: 9,
      mbps: 8,
      'dirty-sync-count': 3,
      'dirty-pages-rate': 1,
      'page-size': 4096,
    }
    expect(seenOf({}, 1)).toBeUndefined()
    expect(seenOf({ ram }, 1)).toEqual({ at_ms: 1, round: 3, remaining_bytes: 7, bandwidth_bytes_per_s: 1_000_000 })
    expect(claimOf({ downtime: 4, 'total-time': 9, ram })).toEqual({
      downtime_ms: 4,
      total_ms: 9,
      sent_bytes: 5,
      rounds: 3,
      bandwidth_mbps: 8,
    })
  })

  test('a fine wall clock keeps within the coarse one', () => {
    const wall = new Wall()
    for (let i = 0; i < 1000; i++) {
      const before = Date.now()
      const at = wall.now()
      expect(at).toBeGreaterThanOrEqual(before - 1)
      expect(at).toBeLessThanOrEqual(Date.now() + 2)
    }
    wall.retune()
    expect(Math.abs(wall.now() - Date.now())).toBeLessThan(3)
    let [now, mono] = [1_000, 0]
    const ticks = () => (mono > 0.4 ? (now = 1_001) : now)
    expect(tickOffset(ticks, () => (mono += 0.25))).toBeCloseTo(1_000.25, 5)
    expect(
      tickOffset(
        () => 5,
        () => (mono += 1),
      ),
    ).toBeLessThan(5)
  })

  test('whether post-copy may be, and how it comes to be', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'wadah-uffd-'))
    const file = join(dir, 'sysctl')
    try {
      expect(await postcopySupport(file)).toMatchObject({
        ok: false,
        reason: expect.stringContaining('no userfaultfd'),
      })
      await writeFile(file, '0\n')
      expect(await postcopySupport(file)).toMatchObject({ ok: false, remedy: expect.stringContaining('sysctl') })
      expect(await allowUserfaults(file)).toBe('0')
      expect(await readFile(file, 'utf8')).toBe('1\n')
      expect(await postcopySupport(file)).toEqual({ ok: true })
    } finally {
      await rm(dir, { recursive: true })
    }
  })
})

describe('a move right after another', () => {
  const moving = { job: 'job-aaaaaaaaaa', role: 'arriving' as const }
  const never = new AbortController().signal
  test('waits until what the first set is taken back', async () => {
    const live: { moving?: typeof moving } = { moving }
    setTimeout(() => delete live.moving, 60)
    await settled(live, never)
    expect(live.moving).toBeUndefined()
    await settled(live, never, 0)
  })
  test('is refused when that lasts', async () => {
    await expect(settled({ moving }, never, 40)).rejects.toMatchObject({
      fault: { code: 'busy', remedy: 'wadah job show job-aaaaaaaaaa', effect: 'none' },
    })
  })
  test('is given up with its signal', async () => {
    const why = new Error('cancelled')
    const waiting = settled({ moving }, AbortSignal.any([never, AbortSignal.timeout(30)]))
    await expect(waiting).rejects.toMatchObject({ name: 'TimeoutError' })
    await expect(settled({ moving }, AbortSignal.abort(why))).rejects.toBe(why)
  })
})
