/** Versions of QEMU as it says them: `7.2.22`. */

/** Pure: by major and minor alone. An older QEMU can't go on from what a newer one saved; the other way it can. */
export function olderQemu(a: string, b: string): boolean {
  const numbers = (version: string) =>
    version
      .split(/[^0-9]+/)
      .filter(Boolean)
      .map(Number)
  const [x, y] = [numbers(a), numbers(b)]
  for (let i = 0; i < 2; i++) {
    const [m, n] = [x[i] ?? 0, y[i] ?? 0]
    if (m !== n) return m < n
  }
  return false
}
