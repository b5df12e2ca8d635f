/** "Did you mean …": the known word a mistyped one is nearest to. */

/** Optimal string alignment distance: letters put in, left out, changed, or two swapped. */
function distance(a: string, b: string): number {
  const rows: number[][] = [Array.from({ length: b.length + 1 }, (_, j) => j)]
  const at = (i: number, j: number) => rows[i]?.[j] ?? 0
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    rows.push(row)
    for (let j = 1; j <= b.length; j++) {
      const changed = at(i - 1, j - 1) + (a[i - 1] === b[j - 1] ? 0 : 1)
      let least = Math.min(changed, at(i - 1, j) + 1, at(i, j - 1) + 1)
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        least = Math.min(least, at(i - 2, j - 2) + 1)
      row.push(least)
    }
  }
  return at(a.length, b.length)
}

/** The nearest of `known` that a slip of the hand could explain, or undefined. */
export function nearest(word: string, known: readonly string[]): string | undefined {
  if (word.length > 100) return undefined
  const most = Math.max(1, Math.floor(word.length / 3))
  let best: string | undefined
  let least = most + 1
  const plain = word.toLowerCase().replaceAll('-', '_')
  for (const candidate of known) {
    if (candidate.toLowerCase().replaceAll('-', '_') === plain) return candidate
    if (Math.abs(plain.length - candidate.length) > most) continue
    const d = distance(plain, candidate.toLowerCase())
    if (d < least) {
      best = candidate
      least = d
    }
  }
  return best
}
