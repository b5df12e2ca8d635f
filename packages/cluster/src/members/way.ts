/**
 * The way to another host, looked at over the daemons' own connection: whether it answers, whether large packets come through as well
 * as small ones, and what its clock says.
 */
import type { CheckItem } from '@wadah/api/schema/host'
import { fail } from '@wadah/api/fault'
import type { Deps } from '../context.ts'
import { offsetOf } from '../migration/clock.ts'
import { type HostRecord, hostKind } from '../records.ts'
import { aliveKind } from './records.ts'

export const WAY_PATH = '/peer/v1/way'
/** A clock that is further off makes certificates and times in records wrong; a host that joins is refused with it. */
export const CLOCK_MS = 30_000
const ASK_MS = 3_000
/** For a list that people look at: a host that hangs is known by other signs. */
const GLANCE_MS = 1_000
export const CLOCK_REMEDY =
  'let both hosts follow a time server: timedatectl set-ntp true (systemd-timesyncd), or apt-get install chrony; at once: date -s …'
/** Many packets of the largest kind, there and back. */
const LARGE_BYTES = 64 * 1024
/** Of large ones that vanish while small ones are answered, before the way is blamed for it. */
const LARGE_TRIES = 2

/** Milliseconds of this host's clock: when it was asked, and what the other one said. */
type Answer = { now_ms: number; pad?: string }
export type Way = {
  /** Why a small question was not answered. */
  silent?: string
  /** Why a large one was not, where a small one was. */
  large?: string
  /** Theirs − ours, and how far that may be wrong. */
  clock?: { offset_ms: number; error_ms: number }
}

/** What the other host answers. `pad` comes back as it went. */
export function answerWay(deps: Pick<Deps, 'clock'>, body: unknown): Answer {
  const pad = (body as { pad?: unknown } | null)?.pad
  return { now_ms: deps.clock.now_ms(), ...(typeof pad === 'string' ? { pad: pad.slice(0, LARGE_BYTES) } : {}) }
}

type Asks = Pick<Deps, 'askHost' | 'clock'>
type Ask = (body: object) => Promise<Answer>

const asker = (deps: Asks, host: string, timeout_ms: number): Ask => {
  return async (body) => {
    if (!deps.askHost) throw new Error('this host is alone')
    return await deps.askHost<Answer>(host, WAY_PATH, body, timeout_ms)
  }
}

/** Theirs − ours, from small packets. */
async function lookAtClock({ clock }: Asks, ask: Ask): Promise<Way['clock']> {
  // The first one may have to make a connection.
  await ask({})
  const [t1_ms, m1] = [clock.now_ms(), clock.monotonic_ms()]
  const { now_ms } = await ask({})
  const t4_ms = t1_ms + clock.monotonic_ms() - m1
  const { offset_ms, round_trip_ms } = offsetOf({ t1_ms, t2_ms: now_ms, t3_ms: now_ms, t4_ms })
  return Number.isFinite(offset_ms) ? { offset_ms, error_ms: round_trip_ms / 2 } : undefined
}

export async function lookAtWay(deps: Asks, host: string): Promise<Way> {
  const ask = asker(deps, host, ASK_MS)
  const way: Way = {}
  try {
    const clock = await lookAtClock(deps, ask)
    if (clock) way.clock = clock
  } catch (error) {
    return { silent: (error as Error).message }
  }
  const pad = 'x'.repeat(LARGE_BYTES)
  for (let i = 0; i < LARGE_TRIES; i++) {
    try {
      if ((await ask({ pad })).pad === pad) {
        delete way.large
        return way
      }
      way.large = 'it came back changed'
    } catch (error) {
      way.large = (error as Error).message
    }
    // A host that stands still for a moment answers small ones no sooner.
    const silent = await ask({}).then(
      () => undefined,
      (error: unknown) => (error as Error).message,
    )
    if (silent !== undefined) return { silent }
  }
  return way
}

/** Pure: what is said of it. Nothing where it is as it should be. */
export function judgeWay(name: string, way: Way): { detail: string; remedy: string } | undefined {
  if (way.silent !== undefined) return { detail: `${name} does not answer: ${way.silent}`, remedy: 'wadah host list' }
  if (way.large !== undefined)
    return {
      detail: `Small packets reach ${name}, large ones vanish on the way: the MTU somewhere between is smaller than here, and nobody says so (${way.large}).`,
      remedy: `ping -M do -s 1472 ADDRESS-OF-${name}; give all of the way one MTU, or let ICMP "fragmentation needed" through`,
    }
  const off_ms = beyond(way.clock)
  return off_ms === undefined ? undefined : judgeClock(name, off_ms)
}

/** Pure: by how much a clock is off, where that is more than it may be and than was measured wrong. */
function beyond(clock: Way['clock']): number | undefined {
  if (!clock || Math.abs(clock.offset_ms) - clock.error_ms <= CLOCK_MS) return undefined
  return clock.offset_ms
}

/** Pure: of a clock that is off by so much, theirs − ours. */
export function judgeClock(name: string, off_ms: number, ours = "this host's"): { detail: string; remedy: string } {
  const off = `${spanOf(off_ms)} ${off_ms > 0 ? 'ahead of' : 'behind'}`
  return { detail: `The clock of ${name} is ${off} ${ours}.`, remedy: CLOCK_REMEDY }
}

/** `45 s`, `5 min`, `3 h`, `12 days`. */
function spanOf(ms: number): string {
  const s = Math.abs(ms) / 1000
  if (s < 120) return `${Math.round(s)} s`
  if (s < 7_200) return `${Math.round(s / 60)} min`
  return s < 172_800 ? `${Math.round(s / 3_600)} h` : `${Math.round(s / 86_400)} days`
}

const othersThere = ({ view, hostId }: Pick<Deps, 'view' | 'hostId'>) =>
  view.list(hostKind).filter((h) => h.id !== hostId && view.get(aliveKind, h.id) !== undefined)

/** Of the other hosts those whose clock is further off than it may be, and by how much (theirs − ours). Of one that is silent nothing is said. */
export async function clocksOff(
  deps: Pick<Deps, 'askHost' | 'clock' | 'view' | 'hostId'>,
): Promise<Map<string, number>> {
  if (!deps.askHost) return new Map()
  const found = await Promise.all(
    othersThere(deps).map(async ({ id }) => {
      const off_ms = beyond(await lookAtClock(deps, asker(deps, id, GLANCE_MS)).catch(() => undefined))
      return off_ms === undefined ? [] : [[id, Math.round(off_ms)] as const]
    }),
  )
  return new Map(found.flat())
}

/** Of each other host that gives signs of life. */
export async function wayItems(deps: Deps): Promise<CheckItem[]> {
  if (!deps.askHost) return []
  return await Promise.all(
    othersThere(deps).map(async ({ id, value }): Promise<CheckItem> => {
      const way = await lookAtWay(deps, id)
      const wrong = judgeWay(value.name, way)
      const name = `way to ${value.name}`
      if (wrong) return { name, state: way.clock && way.large === undefined ? 'warn' : 'lack', ...wrong }
      const { offset_ms = 0, error_ms = 0 } = way.clock ?? {}
      const clocks = `its clock is ${Math.round(Math.abs(offset_ms))} ms off (± ${Math.ceil(error_ms)} ms)`
      return { name, state: 'ok', detail: `small and large packets come through; ${clocks}` }
    }),
  )
}

/** Before a move begins: it would hang for minutes in the middle. @throws WadahError `unavailable`, effect none */
export async function checkWay(deps: Asks, to: Pick<HostRecord, 'id' | 'name'>): Promise<void> {
  const way = await lookAtWay(deps, to.id)
  // Of one that does not answer at all the next question says why; a clock that is off disturbs no move.
  const wrong = way.large === undefined ? undefined : judgeWay(to.name, way)
  if (wrong) throw fail('unavailable', wrong.detail, { remedy: wrong.remedy, effect: 'none' })
}
