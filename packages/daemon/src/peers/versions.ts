/** Pure: why hosts of these two releases can't be in one cluster; undefined when they can. One release apart is what an upgrade needs. */
export function joinable(cluster: string, host: string): string | undefined {
  const [a, b] = [read(cluster), read(host)]
  if (!a || !b) return 'a version is no version'
  const [same, apart] = [a.major === b.major, Math.abs(a.minor - b.minor)]
  if (same && apart <= 1) return undefined
  return 'they may be one release apart, not more'
}

function read(version: string): { major: number; minor: number } | undefined {
  const m = /^(\d+)\.(\d+)\.\d+/.exec(version)
  return m ? { major: Number(m[1]), minor: Number(m[2]) } : undefined
}
