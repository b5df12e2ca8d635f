/** Rules by which VMs are placed: made, shown, deleted. They move nothing by themselves. */
import { fail } from '@wadah/api/fault'
import { newId } from '@wadah/api/ids'
import { parseSelector } from '@wadah/api/selector'
import type { Rule, RuleCreate } from '@wadah/api/schema/rule'
import { absent, del, put, type Rec, unchanged } from '@wadah/store/store'
import { checkGeneration, commit, type Deps, find, indexConflict, made, page } from '../context.ts'
import { hostName, hostNamed } from '../members/where.ts'
import { indexKeys, indexKind, type RuleRecord, ruleKind, vmKind } from '../records.ts'
import type { Caller, IfGeneration, ListQuery, PageOf, RuleService } from '../services.ts'
import { checkName } from '../vms/create.ts'
import { brokenOf, membersOf } from './members.ts'

const NOUN = 'rule'

export class Rules implements RuleService {
  readonly #deps: Deps
  constructor(deps: Deps) {
    this.#deps = deps
  }

  list(caller: Caller, q: ListQuery): PageOf<Rule> {
    const mine = this.#deps.view.list(ruleKind).filter((r) => r.value.project === caller.project)
    const { items, next } = page(mine, (rec) => rec.id, q)
    return { items: items.map((rec) => this.#view(rec)), ...(next === undefined ? {} : { next }) }
  }

  get(caller: Caller, ref: string): Rule {
    return this.#view(find(this.#deps, NOUN, ruleKind, caller.project, ref))
  }

  #view({ value: rule, version }: Rec<RuleRecord>): Rule {
    const { view } = this.#deps
    const { schema: _, vms: ids, hosts, ...rest } = rule
    const members = membersOf(
      rule,
      view.list(vmKind).map((vm) => vm.value),
    )
    const shown = (all: readonly { id: string; name: string }[]) => all.map(({ id, name }) => ({ id, name }))
    return {
      ...rest,
      generation: version,
      named: shown(ids.flatMap((id) => view.get(vmKind, id)?.value ?? [])),
      ...(hosts.length === 0 ? {} : { hosts: hosts.map((id) => ({ id, name: hostName(view, id) })) }),
      vms: shown(members),
      broken: shown(brokenOf(view, rule, members)),
    }
  }

  async create(caller: Caller, body: RuleCreate): Promise<Rule> {
    const deps = this.#deps
    checkName(deps, NOUN, caller.project, body.name)
    if (body.selector !== undefined) parseSelector(body.selector)
    const refs = body.vms ?? []
    if (body.selector === undefined && refs.length === 0)
      throw fail('invalid', 'The rule is for no VM.', {
        field: '/selector',
        remedy: '--vm-selector role=web, or --vm NAME',
      })
    const vms = refs.map((ref, i) => find(deps, 'vm', vmKind, caller.project, ref, `/vms/${i}`).id)
    const of_hosts = body.kind === 'on' || body.kind === 'not-on'
    if (of_hosts !== (body.hosts ?? []).length > 0)
      throw fail(
        'invalid',
        of_hosts ? `A rule of the kind ${body.kind} names hosts.` : `A rule of the kind ${body.kind} names no hosts.`,
        { field: '/hosts', remedy: of_hosts ? '--host HOST (wadah host list)' : 'leave --host out' },
      )
    const hosts = (body.hosts ?? []).map((ref, i) => {
      const host = hostNamed(deps.view, ref)
      if (host === undefined)
        throw fail('not_found', `There is no host "${ref}".`, { field: `/hosts/${i}`, remedy: 'wadah host list' })
      return host
    })
    const record: RuleRecord = {
      schema: 1,
      id: newId(NOUN, deps.randomBytes),
      name: body.name,
      project: caller.project,
      created_at: new Date(deps.clock.now_ms()).toISOString(),
      kind: body.kind,
      strict: body.strict ?? false,
      ...(body.selector === undefined ? {} : { selector: body.selector }),
      vms: [...new Set(vms)],
      hosts: [...new Set(hosts)],
    }
    const key = indexKeys.name(NOUN, caller.project, body.name)
    await commit(
      deps,
      [absent(indexKind, key)],
      [put(ruleKind, record.id, record), put(indexKind, key, { schema: 1, holder: record.id })],
      indexConflict,
    )
    return await made(() => this.get(caller, record.id))
  }

  async delete(caller: Caller, ref: string, generation: IfGeneration): Promise<void> {
    const deps = this.#deps
    const rec = find(deps, NOUN, ruleKind, caller.project, ref)
    checkGeneration(rec, generation)
    const { project, name } = rec.value
    await commit(deps, [unchanged(rec)], [del(ruleKind, rec.id), del(indexKind, indexKeys.name(NOUN, project, name))])
  }
}
