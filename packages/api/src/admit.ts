/** How much may be promised of something that has a size: the one rule for pools, whoever asks. */
import { fault, type Fault } from './fault.ts'

export type Room = {
  /** For the message: `pool "default"`. */
  what: string
  /** What there is. */
  capacity_bytes: number
  /** The sum of the sizes promised so far, counted in full although files are sparse. */
  promised_bytes: number
  /** How many times the capacity may be promised: 1 is none beyond it. */
  overcommit: number
  /** JSON pointer of the size that was asked for. */
  field?: string
}

/** Bytes that may still be promised. Pure. */
export const roomOf = (room: Pick<Room, 'capacity_bytes' | 'promised_bytes' | 'overcommit'>): number =>
  Math.max(0, Math.floor(room.capacity_bytes * room.overcommit) - room.promised_bytes)

/**
 * Whether `wanted_bytes` more may be promised: `promised + wanted ≤ capacity × overcommit`. Nothing wanted is always granted, so a
 * pool that shrank still lets go on what it has. Pure.
 */
export function admit(room: Room, wanted_bytes: number): { ok: true } | { ok: false; why: Fault } {
  const left = roomOf(room)
  if (wanted_bytes <= left) return { ok: true }
  return {
    ok: false,
    why: fault(
      'no_room',
      `${room.what} has ${human(left)} left to promise (${human(room.capacity_bytes)} × ${room.overcommit} overcommit, ${human(room.promised_bytes)} promised), and ${human(wanted_bytes)} are wanted. At most ${human(left)} would fit.`,
      {
        ...(room.field === undefined ? {} : { field: room.field }),
        remedy:
          'ask for less, delete volumes that are not needed (`wadah volume list`), use another pool, or raise the overcommit of this one',
      },
    ),
  }
}

const UNITS = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'] as const

/** `1.5 GiB`: for people; rounded down to one decimal, so that it never promises more than there is. */
export function human(bytes: number): string {
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024
    unit += 1
  }
  const shown = unit === 0 ? `${value}` : `${Math.floor(value * 10) / 10}`
  return `${shown} ${UNITS[unit] ?? 'bytes'}`
}
