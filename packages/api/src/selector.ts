/** Choosing things by their labels: `role=web,env!=test,!old`. Pure; the daemon, the CLI and a page read it alike. */
import { fail } from './fault.ts'

export type Term = { key: string; op: 'has' | 'has-not' | 'is' | 'is-not'; value: string }

const KEY = /^[a-z0-9]([a-z0-9./_-]{0,61}[a-z0-9])?$/

/**
 * Comma-separated terms, all of which must hold. As in Kubernetes, `key!=value` also holds where the key is missing.
 * @throws WadahError `invalid` that names the term; an empty selector is refused: it would choose everything
 */
export function parseSelector(text: string, field = '/selector'): Term[] {
  const terms = text.split(',').map((part) => parseTerm(part.trim(), field))
  return terms
}

function parseTerm(text: string, field: string): Term {
  const match = /^(!?)([^=!]*)(?:(!=|==|=)(.*))?$/s.exec(text)
  const [, not, key = '', op, value = ''] = match ?? []
  if (!match || !KEY.test(key) || (not && op)) {
    throw fail('invalid', `"${text}" is no term of a selector: write key, !key, key=value or key!=value.`, {
      field,
      remedy: 'for example: role=web,env!=test',
    })
  }
  if (op === undefined) return { key, op: not ? 'has-not' : 'has', value: '' }
  return { key, op: op === '!=' ? 'is-not' : 'is', value }
}

export function selects(terms: readonly Term[], labels: Readonly<Record<string, string>>): boolean {
  return terms.every(({ key, op, value }) => {
    const there = Object.hasOwn(labels, key) ? labels[key] : undefined
    switch (op) {
      case 'has':
        return there !== undefined
      case 'has-not':
        return there === undefined
      case 'is':
        return there === value
      default:
        return there !== value
    }
  })
}
