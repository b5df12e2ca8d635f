/** Rules of a firewall as lines of a table, in the order in which they are asked. */
import type { FirewallRule } from '@wadah/api/schema/firewall'
import type { Translate } from '../messages/catalogue.ts'
import type { Cell } from './output.ts'

export const ruleColumns = (t: Translate): string[] => [
  '#',
  t('col.rule'),
  t('col.direction'),
  t('col.action'),
  t('col.protocol'),
  t('col.ports'),
  t('col.peers'),
]

export const actionCell = (action: 'accept' | 'drop'): Cell => ({
  text: action,
  style: action === 'accept' ? 'green' : 'red',
})

export function ruleRow(n: number, rule: FirewallRule): Cell[] {
  const peers = rule.direction === 'in' ? rule.from : rule.to
  return [
    n,
    rule.name,
    rule.direction,
    actionCell(rule.action),
    rule.protocol ?? 'any',
    rule.ports ?? '',
    peers?.join(', ') ?? '*',
  ]
}
