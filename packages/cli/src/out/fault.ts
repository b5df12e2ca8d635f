/** How a fault is shown: what was wrong, where, what to do next, and whether anything was changed. */
import type { Fault } from '@wadah/api/fault'
import type { MessageKey, Translate } from '../messages/catalogue.ts'
import { en } from '../messages/en.ts'
import { clean, cleanText, safeJson } from '../text/clean.ts'
import type { Output } from './output.ts'

export function printFault(fault: Fault, out: Output, t: Translate): void {
  const { stderr } = out.options
  if (out.isJson) {
    stderr.write(`${safeJson(fault)}\n`)
    return
  }
  for (const [i, line] of faultLines(fault, t).entries()) {
    stderr.write(`${i === 0 ? out.style('red', line, stderr) : line}\n`)
  }
}

/** The lines of a fault, the first one the summary. */
export function faultLines(fault: Fault, t: Translate): string[] {
  const key = `fault.${fault.code}`
  const title = key in en ? t(key as MessageKey) : clean(fault.title)
  const lines = [t('fault.line', { title }), `  ${cleanText(fault.detail.trim()).replaceAll('\n', '\n    ')}`]
  if (fault.field !== undefined) lines.push(t('fault.field', { field: fault.field }))
  if (fault.effect === 'partial') lines.push(t('fault.partial'))
  if (fault.effect === 'unknown') lines.push(t('fault.unknown'))
  if (fault.remedy !== undefined) lines.push(t('fault.remedy', { remedy: fault.remedy }))
  return lines
}
