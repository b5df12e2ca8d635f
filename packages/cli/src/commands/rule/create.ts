import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import { RULE_KINDS, type RuleCreate } from '@wadah/api/schema/rule'
import type { Register } from '../../program.ts'
import { collect, oneOf } from '../options.ts'

type Options = {
  kind: string
  vm?: string[]
  vmSelector?: string
  host?: string[]
  hard?: boolean
  soft?: boolean
}

/** A rule by which VMs are placed. */
export const create: Register = (group, cli) => {
  const { t } = cli
  group
    .command('create <name>')
    .description(t('cmd.rule.create'))
    .requiredOption('--kind <rule-kind>', t('opt.rule.kind', { kinds: RULE_KINDS.join(', ') }))
    .option('--vm <vm>', t('opt.rule.vm'), collect)
    .option('--vm-selector <labels>', t('opt.rule.selector'))
    .option('--host <host>', t('opt.rule.host'), collect)
    .option('--hard', t('opt.rule.hard'))
    .option('--soft', t('opt.rule.soft'))
    .action(async (name: string, o: Options) => {
      const body = ruleOf(name, o)
      const api = await cli.api()
      const made = await api.call(endpoints.rules.create, { body })
      if (cli.out.isJson) return cli.out.json(made)
      if (!cli.options.quiet) cli.out.line(t('created', { name }))
      for (const vm of made.broken) cli.out.warn(t('rule.broken', { vm: cli.out.cell(vm.name) }))
    })
}

export function ruleOf(name: string, o: Options): RuleCreate {
  if (o.hard && o.soft)
    throw fail('invalid', '--hard and --soft exclude each other.', { field: '--hard', remedy: 'leave one out' })
  const kind = oneOf(o.kind, '--kind', RULE_KINDS)
  return {
    name,
    kind: kind ?? 'apart',
    strict: o.hard === true,
    ...(o.vm === undefined ? {} : { vms: o.vm }),
    ...(o.vmSelector === undefined ? {} : { selector: o.vmSelector }),
    ...(o.host === undefined ? {} : { hosts: o.host }),
  }
}
