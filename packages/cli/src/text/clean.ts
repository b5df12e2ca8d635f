/**
 * Names, details and log lines come from a server or a guest and must not drive the terminal: whatever a terminal could
 * take as a command, or as a change of reading direction, is shown as an escape instead.
 */
// oxlint-disable-next-line no-control-regex -- control characters are the point
const DANGEROUS = /[\u0000-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g

function escape(c: string): string {
  const code = c.charCodeAt(0)
  return code < 0x100 ? `\\x${code.toString(16).padStart(2, '0')}` : `\\u${code.toString(16).padStart(4, '0')}`
}

/** One line that is safe to print. */
export function clean(text: string): string {
  return text.replace(DANGEROUS, escape)
}

/** Several lines that are safe to print: line feeds and tabs stay. */
export function cleanText(text: string): string {
  return text.replace(/\r\n/g, '\n').replace(DANGEROUS, (c) => (c === '\n' || c === '\t' ? c : escape(c)))
}

/** JSON that is safe to print; still the same value to a parser. */
export function safeJson(value: unknown, indent?: number): string {
  return (JSON.stringify(value, null, indent) ?? 'null').replace(
    /[\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`,
  )
}
