/** Words of the CLI in the reader's language. Parameters are cleaned, since they may come from a server or a guest. */
import { clean } from '../text/clean.ts'
import { en, type MessageKey } from './en.ts'
import { id } from './id.ts'

export const LANGUAGES = ['en', 'id'] as const
export type Language = (typeof LANGUAGES)[number]
export type { MessageKey }
export type Translate = (key: MessageKey, params?: Record<string, string | number>) => string

const CATALOGUES: Record<Language, Record<MessageKey, string>> = { en, id }

export function translator(language: Language): Translate {
  const catalogue = CATALOGUES[language]
  return (key, params = {}) =>
    catalogue[key].replace(/\{(\w+)\}/g, (whole, name: string) => {
      const value = params[name]
      return value === undefined ? whole : clean(String(value))
    })
}

/** `--lang` wins over WADAH_LANG, that over LC_ALL, LC_MESSAGES and LANG; what is not known is English. */
export function chooseLanguage(wish: string | undefined, env: Record<string, string | undefined>): Language {
  const said = wish ?? env['WADAH_LANG'] ?? (env['LC_ALL'] || env['LC_MESSAGES'] || env['LANG'] || '')
  const short = said.slice(0, 2).toLowerCase()
  // `in` is the former ISO 639 code of Indonesian, still used by some systems.
  return short === 'id' || short === 'in' ? 'id' : 'en'
}
