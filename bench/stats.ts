/** Medians, percentiles and spreads of samples; ratios of what was measured in turns. */

export type Summary = { n: number; median: number; p10: number; p90: number; min: number; max: number }

/** Nearest rank on the sorted samples. @param q 0 … 1 */
export function quantile(samples: readonly number[], q: number): number {
  const sorted = [...samples].sort((a, b) => a - b)
  const at = Math.max(0, Math.min(sorted.length - 1, Math.ceil(q * sorted.length) - 1))
  return sorted[at] ?? Number.NaN
}

export function median(samples: readonly number[]): number {
  const sorted = [...samples].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1
    ? (sorted[middle] ?? Number.NaN)
    : ((sorted[middle - 1] ?? Number.NaN) + (sorted[middle] ?? Number.NaN)) / 2
}

export function summary(samples: readonly number[]): Summary {
  return {
    n: samples.length,
    median: median(samples),
    p10: quantile(samples, 0.1),
    p90: quantile(samples, 0.9),
    min: Math.min(...samples),
    max: Math.max(...samples),
  }
}

/** Ratios round by round: what disturbed the machine for a while disturbed both sides of a round. */
export function ratios(ours: readonly number[], reference: readonly number[]): number[] {
  return ours.flatMap((value, i) => {
    const other = reference[i]
    return other === undefined ? [] : [value / other]
  })
}
