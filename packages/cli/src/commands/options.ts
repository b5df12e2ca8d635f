/** Small things that several verbs share. */
import { fail } from '@wadah/api/fault'

/** Checks an option with fixed values. */
export function oneOf<T extends string>(value: string | undefined, what: string, allowed: readonly T[]): T | undefined {
  if (value === undefined) return undefined
  if (!(allowed as readonly string[]).includes(value)) {
    throw fail('invalid', `${what}: "${value}" is not one of ${allowed.join(', ')}`, { field: what })
  }
  return value as T
}

/** For options that may be given several times. */
export function collect(value: string, before: string[] | undefined): string[] {
  return [...(before ?? []), value]
}
