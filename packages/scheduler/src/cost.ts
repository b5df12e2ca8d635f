/** What moves cost: bytes and seconds, and what was assumed to say so. */
import type { DiskCopy } from './fits.ts'
import type { HostView, VmView } from './snapshot.ts'

/** 1 Gbit/s, less what TCP and TLS take. */
export const ASSUMED_LINK_BYTES_PER_S = 110_000_000
/** Of the link, what an unsampled guest is taken to dirty. */
const ASSUMED_DIRTY_SHARE = 0.1
/** What is left to copy when the guest is stopped is what the link carries in this time. */
const LAST_ROUND_S = 0.3
/** Dirtying more than this of what the link carries, copying makes no headway: one round, and the rest on demand (post-copy). */
const CONVERGES_BELOW = 0.9
/** Preparing the target, starting QEMU there, the hand-over: the same for every move. */
const LIVE_SETUP_S = 3
const OFFLINE_SETUP_S = 1

export type Assumed = 'link_speed' | 'dirty_rate' | 'disk_use'
export type Cost = {
  bytes: number
  /** From its start to its end, with as many others at once as the plan says. */
  seconds: number
  assumed: Assumed[]
  /** Its RAM is dirtied faster than the link carries it: pre-copy alone would not end. */
  converges: boolean
}

/**
 * Pre-copy sends all of the RAM, then again what was dirtied meanwhile, and so on: with r = dirty rate / link speed the rounds are
 * M, M·r, M·r² …, until what is left fits the last round; their sum is (M − left·r) / (1 − r), where left = M·r^k. Local disks are
 * copied before, while the guest runs: what they hold is counted, not what the guest writes meanwhile. A stopped VM costs its local disks only.
 * (The model of the rounds: Akoush et al., Predicting the Performance of Virtual Machine Migration, MASCOTS 2010.)
 * @param at_once moves that share the link
 */
export function costOf(
  vm: VmView,
  live: boolean,
  copies: readonly DiskCopy[],
  link: { bytes_per_s: number; assumed: boolean },
  at_once: number,
): Cost {
  const speed = link.bytes_per_s / at_once
  const disks = copies.reduce((sum, copy) => sum + (copy.send_bytes ?? copy.bytes), 0)
  const assumed: Assumed[] = link.assumed ? ['link_speed'] : []
  if (live && vm.dirty_bytes_per_s === undefined) assumed.push('dirty_rate')
  if (copies.some((copy) => copy.send_bytes === undefined)) assumed.push('disk_use')
  if (!live) return { bytes: disks, seconds: OFFLINE_SETUP_S + disks / speed, assumed, converges: true }
  const dirty = vm.dirty_bytes_per_s ?? link.bytes_per_s * ASSUMED_DIRTY_SHARE
  const ram = vm.memory_mib * 2 ** 20
  const ratio = dirty / speed
  const converges = ratio < CONVERGES_BELOW
  let bytes = ram
  if (converges) {
    for (let left = ram * ratio; left > 0; left *= ratio) {
      bytes += left
      if (left <= speed * LAST_ROUND_S) break
    }
  } else {
    // One round of all of it, then on demand what was dirtied in that time: no more than all of it again.
    bytes += Math.min(ram, ram * ratio)
  }
  bytes = Math.ceil(bytes + disks)
  return { bytes, seconds: LIVE_SETUP_S + bytes / speed, assumed, converges }
}

/** The slower of two hosts' links. */
export function linkOf(from: HostView, to: HostView): { bytes_per_s: number; assumed: boolean } {
  const known = [from.link_bytes_per_s, to.link_bytes_per_s].filter((speed) => speed !== undefined && speed > 0)
  const assumed = known.length < 2
  const all = assumed ? [...known, ASSUMED_LINK_BYTES_PER_S] : known
  return { bytes_per_s: Math.min(...(all as number[])), assumed }
}

const GUESSED: Record<Assumed, string> = {
  link_speed: 'the link is taken as 1 Gbit/s where its speed is not known',
  dirty_rate: 'dirty rates that were not sampled are taken as a tenth of the link',
  disk_use: 'local disks are taken as full where nobody says what they hold',
}

export type Eta = {
  seconds: number
  bytes: number
  /** How many moves at once. */
  at_once: number
  assumed: Assumed[]
  /** How it was worked out, in words. */
  how: string
}

/**
 * When all would be through, with `at_once` at a time in the order given, each begun as soon as a slot is free and what it comes `after`
 * has ended.
 */
export function etaOf(actions: readonly { cost: Cost; after: readonly number[] }[], at_once: number): Eta {
  const ends: number[] = []
  const slots = Array.from({ length: Math.max(1, at_once) }, () => 0)
  for (const { cost, after } of actions) {
    let slot = 0
    slots.forEach((free, i) => {
      if (free < (slots[slot] ?? 0)) slot = i
    })
    const begin = Math.max(slots[slot] ?? 0, ...after.map((i) => ends[i] ?? 0))
    const end = begin + cost.seconds
    slots[slot] = end
    ends.push(end)
  }
  const assumed = (Object.keys(GUESSED) as Assumed[]).filter((what) =>
    actions.some(({ cost }) => cost.assumed.includes(what)),
  )
  return {
    seconds: Math.ceil(ends.reduce((most, end) => Math.max(most, end), 0)),
    bytes: actions.reduce((sum, { cost }) => sum + cost.bytes, 0),
    at_once,
    assumed,
    how: [
      'bytes of RAM (again what is dirtied meanwhile) and of local disks over the link, which moves at the same time share',
      ...assumed.map((what) => GUESSED[what]),
    ].join('; '),
  }
}
