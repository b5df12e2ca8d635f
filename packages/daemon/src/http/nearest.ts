/** "Did you mean …": the known word a mistyped one is nearest to. */

/** Levenshtein distance (Wagner–Fischer), given up beyond `most`. */
function distance(a: string, b: string, most: number): number {
  if (Math.abs(a.length - b.length) > most) return most + 1
  let row = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const swap = (row[j - 1] as number) + (a[i - 1] === b[j - 1] ? 0 : 1)
      next.push(Math.min(swap, (row[j] as number) + 1, (next[j - 1] as number) + 1))
    }
    row = next
  }
  return row[b.length] as number
}

/** The nearest of `known` that a slip of the hand could explain, or undefined. */
export function nearest(word: string, known: readonly string[]): string | undefined {
  if (word.length > 200) return undefined
  const most = Math.max(1, Math.floor(word.length / 3))
  let best: string | undefined
  let least = most + 1
  const plain = word.toLowerCase().replaceAll('-', '_')
  for (const candidate of known) {
    if (candidate.toLowerCase().replaceAll('-', '_') === plain) return candidate
    const d = distance(plain, candidate.toLowerCase(), most)
    if (d < least) {
      best = candidate
      least = d
    }
  }
  return best
}
