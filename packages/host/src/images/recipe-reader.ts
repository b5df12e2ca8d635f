import { fail, type WadahError } from '@wadah/api/fault'

/** One value of a recipe, with where it stands. */
export class Field {
  readonly reader: Reader
  readonly key: string
  readonly value: unknown
  constructor(reader: Reader, key: string, value: unknown) {
    this.reader = reader
    this.key = key
    this.value = value
  }

  string(): string {
    if (typeof this.value !== 'string') throw this.wrong(`is ${kindOf(this.value)}`, 'a text in quotes')
    return this.value
  }
  match(pattern: RegExp, right: string): string {
    const value = this.string()
    if (!pattern.test(value)) throw this.wrong(`is ${JSON.stringify(value)}`, right)
    return value
  }
  /** An absolute path in the guest, in its plain form. */
  guestPath(): string {
    const value = this.match(/^\/[^\0\n]{1,1000}$/, 'an absolute path in the guest, such as "/etc/motd"')
    if (
      value
        .split('/')
        .slice(1)
        .some((part) => part === '' || part === '.' || part === '..')
    )
      throw this.wrong(`is ${JSON.stringify(value)}`, 'a path without "..", ".", "//" or a slash at its end')
    return value
  }
  /** A file of the recipe's own folder. */
  relativePath(): string {
    const value = this.match(/^[^/\0\n][^\0\n]{0,1000}$/, 'the path of a file in the recipe’s folder')
    if (value.split('/').some((part) => part === '' || part === '.' || part === '..'))
      throw this.wrong(`is ${JSON.stringify(value)}`, 'a path inside the recipe’s folder, without ".."')
    return value
  }
  wrong(was: string, right: string): WadahError {
    return this.reader.wrong(this.key, was, right)
  }
}

/** Reads one table of a recipe; refuses keys it doesn't know, by name. */
export class Reader {
  readonly file: string
  private readonly values: Record<string, unknown>
  private readonly where: string

  constructor(file: string, values: Record<string, unknown>, where: string, known: readonly string[]) {
    this.file = file
    this.values = values
    this.where = where
    for (const key of Object.keys(values)) {
      if (known.includes(key)) continue
      const guess = nearest(key, known)
      const right = guess ? `did you mean \`${guess}\`?` : `known here: ${known.join(', ')}`
      throw fail('invalid', `${file}: there is no key \`${where}${key}\`; ${right}`, { field: this.pointer(key) })
    }
  }

  wrong(key: string, was: string, right: string): WadahError {
    return fail('invalid', `${this.file}: \`${this.where}${key}\`: ${was}; right would be: ${right}`, {
      field: this.pointer(key),
    })
  }
  private pointer(key: string): string {
    return `/recipe/${this.where.replaceAll(/[.[\]]+/g, '/')}${key}`
  }

  field(key: string): Field {
    const value = this.values[key]
    if (value === undefined) throw this.wrong(key, 'is missing', 'this key is needed')
    return new Field(this, key, value)
  }
  optional<T>(key: string, read: (field: Field) => T): T | undefined {
    return this.values[key] === undefined ? undefined : read(this.field(key))
  }
  text(key: string, otherwise?: string): string {
    if (this.values[key] === undefined && otherwise !== undefined) return otherwise
    const text = this.field(key).string()
    if (text.length > 2000) throw this.wrong(key, `has ${text.length} characters`, 'at most 2000')
    return text
  }
  match(key: string, pattern: RegExp, right: string): string {
    return this.field(key).match(pattern, right)
  }
  oneOf<T extends string>(key: string, values: readonly T[], otherwise?: T): T {
    if (this.values[key] === undefined && otherwise !== undefined) return otherwise
    const value = this.field(key).string()
    const found = values.find((v) => v === value)
    if (found === undefined) throw this.wrong(key, `is "${value}"`, `one of ${values.map((v) => `"${v}"`).join(', ')}`)
    return found
  }
  integer(key: string, least: number, most: number, otherwise?: number): number {
    const value = this.values[key]
    if (value === undefined && otherwise !== undefined) return otherwise
    if (typeof value !== 'number' || !Number.isInteger(value) || value < least || value > most)
      throw this.wrong(
        key,
        value === undefined ? 'is missing' : `is ${JSON.stringify(value)}`,
        `a whole number from ${least} to ${most}`,
      )
    return value
  }
  flag(key: string, otherwise: boolean): boolean {
    const value = this.values[key] ?? otherwise
    if (typeof value !== 'boolean') throw this.wrong(key, `is ${kindOf(value)}`, 'true or false')
    return value
  }
  list(key: string, pattern: RegExp, right: string): string[] {
    const value = this.values[key]
    if (value === undefined) return []
    if (!Array.isArray(value)) throw this.wrong(key, `is ${kindOf(value)}`, 'a list in square brackets')
    return value.map((item: unknown, i) => {
      if (typeof item !== 'string' || !pattern.test(item))
        throw this.wrong(`${key}[${i}]`, `is ${JSON.stringify(item)}`, right)
      return item
    })
  }
  table(key: string, known: readonly string[]): Reader | undefined {
    const value = this.values[key]
    if (value === undefined) return undefined
    if (!isTable(value))
      throw this.wrong(key, `is ${kindOf(value)}`, `a table: [${key}] and its keys on the lines after it`)
    return new Reader(this.file, value, `${this.where}${key}.`, known)
  }
  tables(key: string, known: readonly string[]): Reader[] {
    const value = this.values[key]
    if (value === undefined) return []
    if (!Array.isArray(value) || !value.every(isTable))
      throw this.wrong(key, `is ${kindOf(value)}`, `one or more tables, each begun with [[${key}]]`)
    return value.map((item, i) => new Reader(this.file, item, `${this.where}${key}[${i}].`, known))
  }
  /** `result`, when no key besides `allowed` is there: those of another kind would be silently without effect. */
  only<T>(allowed: readonly string[], result: T): T {
    for (const key of Object.keys(this.values))
      if (!allowed.includes(key)) throw this.wrong(key, 'has no meaning for this kind', `only ${allowed.join(', ')}`)
    return result
  }
}

function isTable(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Date)
}

function kindOf(value: unknown): string {
  if (Array.isArray(value)) return 'a list'
  if (isTable(value)) return 'a table'
  return typeof value === 'string' ? `the text ${JSON.stringify(value)}` : `${String(value)}`
}

/** The known word that a typo most likely meant, or undefined when none is near. */
export function nearest(word: string, known: readonly string[]): string | undefined {
  const scored = known.map((k) => ({ k, d: distance(word.toLowerCase(), k) })).sort((a, b) => a.d - b.d)
  const best = scored[0]
  return best && best.d <= Math.max(1, Math.floor(best.k.length / 3)) ? best.k : undefined
}

/** Levenshtein's edit distance, a neighbouring swap counting as one (optimal string alignment). */
function distance(a: string, b: string): number {
  const d: number[][] = Array.from({ length: a.length + 1 }, (_, i) => [i])
  const at = (i: number, j: number): number => d[i]?.[j] ?? 0
  for (let j = 1; j <= b.length; j++) (d[0] ??= [])[j] = j
  for (let i = 1; i <= a.length; i++)
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1
      let best = Math.min(at(i - 1, j) + 1, at(i, j - 1) + 1, at(i - 1, j - 1) + same)
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) best = Math.min(best, at(i - 2, j - 2) + 1)
      ;(d[i] ??= [])[j] = best
    }
  return at(a.length, b.length)
}
