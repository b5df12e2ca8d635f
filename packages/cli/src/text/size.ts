/** Sizes, times and rates as people type them. Every refusal says what would be right. */
import { fail } from '@wadah/api/fault'

const UNITS: Record<string, number> = { K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 }
const MIB = 2 ** 20

/** Bytes of `512M`, `1.5GiB`, `4G`. A unit is a must: a bare number could mean bytes or MiB. */
export function parseBytes(text: string, what: string): number {
  const match = /^(\d+(?:\.\d+)?)([KMGT])(?:i?B)?$/i.exec(text.trim())
  if (!match) {
    const bare = /^\d+$/.test(text.trim())
    throw fail(
      'invalid',
      bare
        ? `${what}: "${text}" has no unit. Write ${text}M, ${text}G …`
        : `${what}: "${text}" is not a size. Write a number and K, M, G or T (1K = 1024), for example 512M or 1.5G`,
      { field: what },
    )
  }
  const bytes = Number(match[1]) * (UNITS[match[2]!.toUpperCase()] ?? 1)
  if (!Number.isSafeInteger(bytes)) {
    throw fail('invalid', `${what}: "${text}" is not a whole number of bytes, or too large to be one`, { field: what })
  }
  return bytes
}

/** Whole MiB of a size. */
export function parseMib(text: string, what: string): number {
  const bytes = parseBytes(text, what)
  if (bytes < MIB || bytes % MIB !== 0) {
    throw fail('invalid', `${what}: "${text}" is not a whole number of MiB (1M = 1024K)`, { field: what })
  }
  return bytes / MIB
}

/** A whole number in a range, both ends included. */
export function parseInteger(text: string, what: string, min: number, max: number): number {
  const value = /^-?\d{1,15}$/.test(text.trim()) ? Number(text) : Number.NaN
  if (!(value >= min && value <= max)) {
    throw fail('invalid', `${what}: "${text}" is not a whole number from ${min} to ${max}`, { field: what })
  }
  return value
}

/** Seconds of `90`, `90s`, `2m`, `1h`. */
export function parseSeconds(text: string, what: string): number {
  const match = /^(\d{1,9}(?:\.\d{1,3})?)(s|m|h)?$/.exec(text.trim())
  const seconds = match ? Number(match[1]) * { s: 1, m: 60, h: 3600 }[(match[2] ?? 's') as 's' | 'm' | 'h'] : 0
  if (!(seconds > 0)) {
    throw fail('invalid', `${what}: "${text}" is not a time. Write seconds, or 90s, 2m, 1h`, { field: what })
  }
  return seconds
}
