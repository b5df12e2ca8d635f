/** Which package sources a build uses. Pure: texts in, lines out. */

export const SUITE = 'bookworm'
const SUITES = [SUITE, `${SUITE}-updates`, `${SUITE}-security`]
const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg'

export const DEFAULT_SOURCES: readonly SourceLine[] = [
  { uri: 'http://deb.debian.org/debian', suite: SUITE },
  { uri: 'http://deb.debian.org/debian', suite: `${SUITE}-updates` },
  { uri: 'http://deb.debian.org/debian-security', suite: `${SUITE}-security` },
]

export interface SourceLine {
  uri: string
  suite: string
}

/** One-line format, `main` only, signed by Debian's archive keys. */
export function formatSources(lines: readonly SourceLine[]): string {
  return lines.map((l) => `deb [signed-by=${KEYRING}] ${l.uri} ${l.suite} main\n`).join('')
}

/**
 * The sources for a build: this host's own mirrors of the Debian suites when its files (one-line or deb822 format) name
 * them, else Debian's own. Other repositories of the host are left out: an image holds nothing but Debian.
 */
export function chooseSources(hostFiles: readonly string[], mirror?: string): SourceLine[] {
  if (mirror !== undefined) {
    const base = mirror.replace(/\/+$/, '')
    return DEFAULT_SOURCES.map((l) => (l.suite.endsWith('-security') ? l : { ...l, uri: base }))
  }
  const found = hostFiles.flatMap((text) => (/^\s*types\s*:/im.test(text) ? parseDeb822(text) : parseOneLine(text)))
  return DEFAULT_SOURCES.map((wanted) => found.find((l) => l.suite === wanted.suite) ?? wanted)
}

function parseOneLine(text: string): SourceLine[] {
  return text.split('\n').flatMap((line) => {
    const match = /^\s*deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)$/.exec(line)
    return match ? accept([match[1] ?? ''], [match[2] ?? ''], (match[3] ?? '').split(/\s+/)) : []
  })
}

function parseDeb822(text: string): SourceLine[] {
  const stanzas = text
    .split('\n')
    .filter((l) => !l.startsWith('#'))
    .join('\n')
    .split(/\n\s*\n/)
  return stanzas.flatMap((stanza) => {
    const fields = new Map<string, string[]>()
    for (const match of stanza.matchAll(/^([A-Za-z-]+)\s*:((?:[^\n]*)(?:\n[ \t]+[^\n]*)*)/gm))
      fields.set((match[1] ?? '').toLowerCase(), (match[2] ?? '').split(/\s+/).filter(Boolean))
    if (!fields.get('types')?.includes('deb') || fields.get('enabled')?.[0] === 'no') return []
    return accept(fields.get('uris') ?? [], fields.get('suites') ?? [], fields.get('components') ?? [])
  })
}

/** Only plain Debian archives over HTTP: their paths end like those of Debian's own mirrors. */
function accept(uris: string[], suites: string[], components: string[]): SourceLine[] {
  if (!components.includes('main')) return []
  const good = uris.filter((u) => /^https?:\/\/[^\s"'[\]]+\/debian(-security)?\/?$/.test(u))
  return suites
    .filter((s) => SUITES.includes(s))
    .flatMap((suite) => good.slice(0, 1).map((uri) => ({ uri: uri.replace(/\/+$/, ''), suite })))
}
