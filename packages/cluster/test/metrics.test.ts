/** What is told to Prometheus: the format, and counters that count each move once and only grow. */
import { spawnSync } from 'node:child_process'
import { mkdtempSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { VmMove } from '@wadah/api/schema/migration'
import { CachedView } from '@wadah/store/cache'
import { put } from '@wadah/store/store'
import { openMemoryStore } from '@wadah/store/testing/memory'
import fc from 'fast-check'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { pruneJobs } from '../src/jobs/housekeeping.ts'
import { type JobRecord, jobKind } from '../src/jobs/record.ts'
import { exposition } from '../src/metrics/exposition.ts'
import { addTallies, emptyTally, moveFamilies, rememberMoves, tallyKind, withJob } from '../src/metrics/moves.ts'
import { Metrics } from '../src/metrics/service.ts'
import { HOST, fakeDeps, ground } from './kit/cluster.ts'
import { readExposition } from './kit/exposition.ts'
import { FakeWorld } from './kit/fake-machine.ts'

type Move = { mode?: string; live?: boolean; state?: JobRecord['state']; result?: Partial<VmMove> }
let made = 0
const move = ({ mode = 'auto', live = true, state = 'done', result }: Move = {}, host = HOST): JobRecord =>
  ({
    schema: 1,
    id: `job-${String(made++)
      .padStart(10, '0')
      .replaceAll(/./g, (d) => 'abcdefghij'[Number(d)] as string)}`,
    name: 'vm.migrate',
    state,
    params: { live, mode },
    executor: { host, fence: 1 },
    claims: [],
    steps: [],
    ended_ms: made,
    ...(result ? { result: { live: true, ...result } } : {}),
  }) as unknown as JobRecord
const promtool = [process.env['PROMTOOL'], 'promtool'].find(
  (file) => file !== undefined && spawnSync(file, ['--version']).status === 0,
)
const anyMove: fc.Arbitrary<Move> = fc.record({
  mode: fc.constantFrom('auto', 'precopy', 'postcopy', 'hybrid', 'of a newer release'),
  live: fc.boolean(),
  state: fc.constantFrom('done' as const, 'failed' as const, 'cancelled' as const, 'running' as const),
  result: fc.record(
    {
      live: fc.boolean(),
      how: fc.constantFrom('precopy' as const, 'postcopy' as const),
      total_ms: fc.integer({ min: 0, max: 10_000_000 }),
      stall_ms: fc.double({ min: 0, max: 20_000, noNaN: true }),
      claimed_downtime_ms: fc.nat(5000),
      stall_error_ms: fc.double({ min: 0, max: 50, noNaN: true }),
      outside: fc.record(
        {
          address: fc.constant('10.0.0.2'),
          sent: fc.nat(),
          lost: fc.nat(),
          longest_gap_ms: fc.double({ min: 0, max: 100_000, noNaN: true }),
          before_ms: fc.double({ min: 0, max: 3000, noNaN: true }),
          during_ms: fc.double({ min: 0, max: 3000, noNaN: true }),
          after_ms: fc.double({ min: 0, max: 3000, noNaN: true }),
        },
        { requiredKeys: ['address', 'sent', 'lost', 'longest_gap_ms'] },
      ),
      bytes: fc.nat(),
      ratio: fc.record({ stall: fc.double({ min: 0, max: 9, noNaN: true }) }),
    },
    { requiredKeys: [] },
  ),
})

describe('the text', () => {
  test('labels and help hold whatever they hold', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), fc.double(), (text, value) => {
        const got = readExposition(
          exposition([{ name: 'wadah_x', type: 'gauge', help: 'x\\y\nz', samples: [{ labels: { text }, value }] }]),
        )
        expect(got[0]?.help).toBe('x\\\\y\\nz')
        // A carriage return is no end of a line here.
        expect(got[0]?.samples[0]).toEqual({
          name: 'wadah_x',
          labels: { text },
          value: Object.is(value, -0) ? 0 : value,
        })
      }),
    )
  })
  test('of any moves it is what a scraper reads, and what it counts is consistent', () => {
    fc.assert(
      fc.property(fc.array(anyMove, { maxLength: 20 }), (all) => {
        const tally = all.map((m) => move(m)).reduce(withJob, emptyTally())
        const read = readExposition(exposition(moveFamilies(tally)))
        const total = read.find((f) => f.name === 'wadah_moves_total')?.samples.reduce((sum, s) => sum + s.value, 0)
        expect(total).toBe(all.filter((m) => m.state !== 'running').length)
      }),
    )
  })
  test('two tallies added are one of all', () => {
    fc.assert(
      fc.property(fc.array(anyMove, { maxLength: 12 }), fc.nat(12), (all, cut) => {
        const jobs = all.map((m) => move(m))
        const [a, b] = [jobs.slice(0, cut), jobs.slice(cut)].map((part) => part.reduce(withJob, emptyTally()))
        const values = (tally: ReturnType<typeof emptyTally>) =>
          readExposition(exposition(moveFamilies(tally))).flatMap((f) => f.samples.map((s) => s.value))
        const whole = values(jobs.reduce(withJob, emptyTally()))
        values(addTallies(a ?? emptyTally(), b ?? emptyTally())).forEach((v, i) =>
          expect(v).toBeCloseTo(whole[i] as number, 6),
        )
      }),
    )
  })
})

describe('of a host', () => {
  let store: ReturnType<typeof openMemoryStore>
  let view: CachedView
  let metrics: Metrics
  let logs: string
  beforeEach(async () => {
    logs = mkdtempSync(join(tmpdir(), 'wadah-metrics-'))
    store = openMemoryStore()
    await store.txn([], ground(), 'made')
    view = await CachedView.open(store, {})
    metrics = new Metrics(fakeDeps(store, view, new FakeWorld()), '1.2.3')
  })
  afterEach(async () => {
    await view.close()
    await rm(logs, { recursive: true })
  })
  let n = 0
  const keep = async (...jobs: JobRecord[]) => {
    const { revision } = await store.txn(
      [],
      jobs.map((j) => put(jobKind, j.id, j)),
      `j${n++}`,
    )
    await view.waitFor(revision)
  }
  const value = async (name: string, labels: Record<string, string> = {}) => {
    const samples = readExposition(await metrics.text()).flatMap((f) => f.samples)
    return samples.find((s) => s.name === name && Object.entries(labels).every(([k, v]) => s.labels[k] === v))?.value
  }
  const stall = { how: 'precopy' as const, stall_ms: 60, claimed_downtime_ms: 40, bytes: 1000, total_ms: 2000 }
  const all = () => [
    move({ result: { ...stall, ratio: { stall: 1.2, total: 0.7 } } }),
    move({ mode: 'postcopy', result: { ...stall, how: 'postcopy', stall_ms: 400 } }),
    move({ live: false, result: { live: false } }),
    move({ state: 'failed' }),
    move({ state: 'running' }),
    move({ result: stall }, 'host-bbbbbbbbbb'),
  ]

  test('its moves by mode and end, how long guests stood still, and what was foreseen', async () => {
    await keep(...all())
    expect(await value('wadah_build_info', { version: '1.2.3', host: 'here' })).toBe(1)
    expect(await value('wadah_moves_total', { mode: 'auto', result: 'done' })).toBe(1)
    expect(await value('wadah_moves_total', { mode: 'auto', result: 'failed' })).toBe(1)
    expect(await value('wadah_moves_total', { mode: 'offline', result: 'done' })).toBe(1)
    expect(await value('wadah_moves_total', { mode: 'hybrid', result: 'cancelled' })).toBe(0)
    expect(await value('wadah_move_stall_seconds_bucket', { how: 'precopy', le: '0.05' })).toBe(0)
    expect(await value('wadah_move_stall_seconds_bucket', { how: 'precopy', le: '0.1' })).toBe(1)
    expect(await value('wadah_move_stall_seconds_sum', { how: 'postcopy' })).toBe(0.4)
    expect(await value('wadah_move_claimed_downtime_seconds_count', { how: 'precopy' })).toBe(1)
    expect(await value('wadah_move_duration_seconds_sum')).toBe(4)
    expect(await value('wadah_move_sent_bytes_total')).toBe(2000)
    expect(await value('wadah_move_forecast_ratio_sum', { of: 'stall' })).toBe(1.2)
    expect(await value('wadah_jobs', { state: 'running' })).toBe(1)
    expect(await value('wadah_jobs', { state: 'done' })).toBe(3)
  })

  test('what the guest looked like from outside, and how far what was measured may be wrong', async () => {
    const outside = { address: 'a', sent: 500, lost: 20, longest_gap_ms: 90, before_ms: 0.4, during_ms: 0.7 }
    await keep(move({ result: { ...stall, stall_error_ms: 0.3, outside } }), move({ result: stall }))
    expect(await value('wadah_move_gap_seconds_bucket', { how: 'precopy', le: '0.05' })).toBe(0)
    expect(await value('wadah_move_gap_seconds_bucket', { how: 'precopy', le: '0.1' })).toBe(1)
    expect(await value('wadah_move_gap_seconds_sum', { how: 'precopy' })).toBe(0.09)
    expect(await value('wadah_move_gap_seconds_count', { how: 'postcopy' })).toBe(0)
    expect(await value('wadah_move_answer_seconds_bucket', { when: 'before', le: '0.0005' })).toBe(1)
    expect(await value('wadah_move_answer_seconds_bucket', { when: 'during', le: '0.0005' })).toBe(0)
    expect(await value('wadah_move_answer_seconds_count', { when: 'during' })).toBe(1)
    expect(await value('wadah_move_answer_seconds_count', { when: 'after' })).toBe(0)
    expect(await value('wadah_move_stall_error_seconds_sum')).toBe(0.0003)
    expect(await value('wadah_move_stall_error_seconds_count')).toBe(1)
  })

  test('what an older release has counted goes on being counted', async () => {
    const { gap: _g, answer: _a, stall_error: _e, ...older } = [move({ result: stall })].reduce(withJob, emptyTally())
    await store.txn([], [put(tallyKind, HOST, { schema: 1, moves: older as never })], 'older')
    await keep(move({ result: { ...stall, stall_error_ms: 0.3 } }))
    expect(await value('wadah_moves_total', { mode: 'auto', result: 'done' })).toBe(2)
    expect(await value('wadah_move_stall_error_seconds_count')).toBe(1)
    await rememberMoves(store)(move({ result: stall })).then(({ writes }) => store.txn([], writes, 'remembered'))
    await view.waitFor(await store.current())
    expect(await value('wadah_moves_total', { mode: 'auto', result: 'done' })).toBe(3)
  })

  test('what is forgotten of jobs stays counted, each once', async () => {
    await keep(...all())
    const before = (await metrics.text()).replaceAll(/wadah_jobs\{.*/g, '')
    const prune = async (keepJobs: number) => {
      const dropped = await pruneJobs({
        store,
        token: () => `p${n++}`,
        hostId: HOST,
        logDir: logs,
        now_ms: 0,
        keep_ms: 1e12,
        keepJobs,
        remember: rememberMoves(store),
      })
      await view.waitFor(await store.current())
      return dropped.length
    }
    expect(await prune(2)).toBe(2)
    expect((await metrics.text()).replaceAll(/wadah_jobs\{.*/g, '')).toBe(before)
    expect(await prune(0)).toBe(2)
    expect((await metrics.text()).replaceAll(/wadah_jobs\{.*/g, '')).toBe(before)
    expect(view.list(jobKind)).toHaveLength(2)
    expect(view.get(tallyKind, HOST)?.value.moves.ended).toEqual({
      'auto done': 1,
      'postcopy done': 1,
      'offline done': 1,
      'auto failed': 1,
    })
  })

  test.skipIf(promtool === undefined)('promtool has nothing to say of it', async () => {
    await keep(...all())
    const { status, stdout, stderr } = spawnSync(promtool ?? '', ['check', 'metrics'], { input: await metrics.text() })
    expect([status, String(stdout), String(stderr)]).toEqual([0, '', ''])
  })
})
