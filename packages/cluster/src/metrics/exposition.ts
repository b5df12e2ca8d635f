/** Prometheus' text format, version 0.0.4. Pure. (https://prometheus.io/docs/instrumenting/exposition_formats/) */
export type Labels = Readonly<Record<string, string>>
/** How often a value was at most `le` and above the bound before; `+Inf` is the last bound. */
export type Histogram = { sum: number; counts: Record<string, number> }
export type Family = { name: string; help: string } & (
  | { type: 'counter' | 'gauge'; samples: { labels?: Labels; value: number }[] }
  | { type: 'histogram'; bounds: readonly number[]; samples: { labels?: Labels; value: Histogram }[] }
)

export const emptyHistogram = (): Histogram => ({ sum: 0, counts: {} })

/** The same histogram with one value more. */
export function observed(h: Histogram, bounds: readonly number[], value: number): Histogram {
  const le = String(bounds.find((bound) => value <= bound) ?? '+Inf')
  return { sum: h.sum + value, counts: { ...h.counts, [le]: (h.counts[le] ?? 0) + 1 } }
}

/** Counts of two, whatever bounds they had. */
export function addHistograms(a: Histogram, b: Histogram): Histogram {
  const counts = { ...a.counts }
  for (const [le, n] of Object.entries(b.counts)) counts[le] = (counts[le] ?? 0) + n
  return { sum: a.sum + b.sum, counts }
}

export function exposition(families: readonly Family[]): string {
  return families
    .map((f) => `# HELP ${f.name} ${escaped(f.help, /[\\\n]/g)}\n# TYPE ${f.name} ${f.type}\n${samplesOf(f)}`)
    .join('')
}

function samplesOf(f: Family): string {
  if (f.type !== 'histogram') return f.samples.map((s) => line(f.name, s.labels, s.value)).join('')
  return f.samples
    .map(({ labels, value: { sum, counts } }) => {
      const found = Object.entries(counts).map(
        ([le, n]) => [le === '+Inf' ? Number.POSITIVE_INFINITY : Number(le), n] as const,
      )
      const upTo = (le: number) => found.reduce((all, [bound, n]) => (bound <= le ? all + n : all), 0)
      const count = upTo(Number.POSITIVE_INFINITY)
      const buckets = f.bounds.map((le) => line(`${f.name}_bucket`, { ...labels, le: String(le) }, upTo(le)))
      const all = line(`${f.name}_bucket`, { ...labels, le: '+Inf' }, count)
      return [...buckets, all, line(`${f.name}_sum`, labels, sum), line(`${f.name}_count`, labels, count)].join('')
    })
    .join('')
}

function line(name: string, labels: Labels | undefined, value: number): string {
  const inner = Object.entries(labels ?? {}).map(([key, text]) => `${key}="${escaped(text, /[\\\n"]/g)}"`)
  return `${name}${inner.length === 0 ? '' : `{${inner.join(',')}}`} ${numberText(value)}\n`
}

const escaped = (text: string, what: RegExp) => text.replace(what, (c) => (c === '\n' ? '\\n' : `\\${c}`))

function numberText(value: number): string {
  if (Number.isNaN(value)) return 'NaN'
  if (!Number.isFinite(value)) return value > 0 ? '+Inf' : '-Inf'
  return String(value)
}
