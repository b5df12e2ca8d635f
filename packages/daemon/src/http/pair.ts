/** What a key and its certificate are, for those who make and those who read them. */
export const DAY_MS = 24 * 3_600_000
/** The organization in our own certificates, by which they are told from those an administrator put there. */
export const ISSUED_BY = 'Wadah'
export type Pair = { key: string; cert: string }
export const isAddress = (name: string) => /^[0-9.]+$/.test(name) || name.includes(':')
