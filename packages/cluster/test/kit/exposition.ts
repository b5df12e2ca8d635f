/** Reads Prometheus' text format 0.0.4 strictly, as a scraper does, and checks what `promtool check metrics` checks of names and histograms. */
export type Sample = { name: string; labels: Record<string, string>; value: number }
export type Read = { name: string; type: string; help: string; samples: Sample[] }

const NAME = /^[a-zA-Z_:][a-zA-Z0-9_:]*$/
const LABEL = /^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\n"])*)"(,|$)/

/** @throws Error that names the line */
export function readExposition(text: string): Read[] {
  if (text !== '' && !text.endsWith('\n')) throw new Error('the last line has no end')
  const families: Read[] = []
  const seen = new Set<string>()
  for (const line of text.split('\n').slice(0, -1)) {
    const wrong = (why: string) => new Error(`${why}: ${line}`)
    const [, word, of = '', rest = ''] = /^# (HELP|TYPE) (\S+) (.*)$/.exec(line) ?? []
    if (word === 'HELP') {
      if (families.some((f) => f.name === of) || !NAME.test(of)) throw wrong('a family twice, or without a name')
      families.push({ name: of, type: '', help: rest, samples: [] })
      continue
    }
    const family = families.at(-1)
    if (!family) throw wrong('a sample of no family')
    if (word === 'TYPE') {
      if (of !== family.name || family.type !== '' || !['counter', 'gauge', 'histogram'].includes(rest))
        throw wrong('a wrong type')
      family.type = rest
      continue
    }
    const [, name = '', inner = '', value = ''] = /^([^\s{]+)(?:\{(.*)\})? (\S+)$/s.exec(line) ?? []
    const allowed =
      family.type === 'histogram' ? ['_bucket', '_sum', '_count'].map((s) => family.name + s) : [family.name]
    if (!allowed.includes(name) || family.type === '') throw wrong('a sample out of place')
    const labels: Record<string, string> = {}
    for (let left = inner; left !== ''; ) {
      const [all = '', key = '', quoted = ''] = LABEL.exec(left) ?? []
      if (all === '' || key in labels) throw wrong('a wrong label')
      labels[key] = quoted.replaceAll(/\\(.)/g, (_, c: string) => (c === 'n' ? '\n' : c))
      left = left.slice(all.length)
    }
    const number = Number(value.replace(/^([+-])Inf$/, '$1Infinity'))
    if (value === '' || (Number.isNaN(number) && value !== 'NaN')) throw wrong('no number')
    const series = JSON.stringify([name, Object.entries(labels).toSorted()])
    if (seen.has(series)) throw wrong('a series twice')
    seen.add(series)
    family.samples.push({ name, labels, value: number })
  }
  families.forEach(lint)
  return families
}

function lint(f: Read): void {
  const wrong = (why: string) => new Error(`${f.name}: ${why}`)
  if (f.help === '') throw wrong('no help')
  if ((f.type === 'counter') !== f.name.endsWith('_total')) throw wrong('counters, and nothing else, end with _total')
  if (/_(ms|milliseconds|kib|mib|bytes_bytes|percent)(_|$)/.test(f.name)) throw wrong('a unit that is no base unit')
  if (f.type === 'counter' && f.samples.some((s) => s.value < 0)) throw wrong('a counter below 0')
  if (f.type !== 'histogram') return
  const key = (labels: Record<string, string>) => JSON.stringify({ ...labels, le: '' })
  for (const count of f.samples.filter((s) => s.name.endsWith('_count'))) {
    const buckets = f.samples.filter((s) => s.name.endsWith('_bucket') && key(s.labels) === key(count.labels))
    const le = buckets.map((b) => (b.labels['le'] === '+Inf' ? Number.POSITIVE_INFINITY : Number(b.labels['le'])))
    if (le.at(-1) !== Number.POSITIVE_INFINITY || le.some((b, i) => i > 0 && b <= (le[i - 1] as number)))
      throw wrong('bounds that do not grow, or no last one')
    if (buckets.some((b, i) => i > 0 && b.value < (buckets[i - 1]?.value as number))) throw wrong('buckets that shrink')
    if (buckets.at(-1)?.value !== count.value) throw wrong('the count is not that of the last bucket')
  }
}
