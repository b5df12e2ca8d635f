/** Answers as text. */

/** What an item of a list came to, as long as that very object is given out again: whoever gives one out never changes it. */
const texts = new WeakMap<object, string>()

/**
 * `JSON.stringify`, but for a page of a list every item that was given out before is text already. Of a page of 1,000 VMs most are
 * the same objects as the last time (cluster/vms/service.ts).
 */
export function toJson(value: unknown): string {
  if (value === null || typeof value !== 'object' || !Array.isArray((value as { items?: unknown }).items))
    return JSON.stringify(value)
  const { items, ...rest } = value as { items: unknown[] }
  const more = JSON.stringify(rest)
  return `{"items":[${items.map(textOf).join(',')}]${more === '{}' ? '' : `,${more.slice(1, -1)}`}}`
}

function textOf(item: unknown): string {
  // As JSON.stringify does with what it cannot write in an array.
  if (item === null || typeof item !== 'object') return JSON.stringify(item) ?? 'null'
  let text = texts.get(item)
  if (text === undefined) {
    text = JSON.stringify(item)
    texts.set(item, text)
  }
  return text
}
