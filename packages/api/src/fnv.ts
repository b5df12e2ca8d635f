/** FNV-1a, 32 bits: the same for the same text everywhere, for spreading and never for secrets (draft-eastlake-fnv). Pure. */
export function fnv1a(text: string): number {
  let h = 0x811c9dc5
  for (const c of text) h = Math.imul(h ^ c.charCodeAt(0), 0x01000193) >>> 0
  return h
}
