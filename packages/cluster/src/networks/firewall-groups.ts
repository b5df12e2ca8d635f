/** Security groups: rules that many VMs share. A change holds for all of them at once. */
import { fail } from '@wadah/api/fault'
import { newId } from '@wadah/api/ids'
import type { FirewallGroup, FirewallGroupCreate, FirewallGroupEdit } from '@wadah/api/schema/firewall'
import { type Check, type Rec, type Write, absent, del, put, unchanged } from '@wadah/store/store'
import { type Deps, checkGeneration, commit, find, indexConflict, made, page } from '../context.ts'
import { type FirewallGroupRecord, groupKind, indexKeys, indexKind, vmKind } from '../records.ts'
import type { Caller, FirewallGroupService, IfGeneration, ListQuery, PageOf } from '../services.ts'
import { checkName } from '../vms/create.ts'
import { groupChecks, membersOf, namedGroups, namedRule, planRules } from './firewall-rules.ts'

const NOUN = 'firewall-group'

export class FirewallGroups implements FirewallGroupService {
  readonly #deps: Deps
  constructor(deps: Deps) {
    this.#deps = deps
  }

  list(caller: Caller, q: ListQuery): PageOf<FirewallGroup> {
    const mine = this.#deps.view.list(groupKind).filter((g) => g.value.project === caller.project)
    const { items, next } = page(mine, (rec) => rec.id, q)
    return { items: items.map((rec) => this.#view(rec)), ...(next === undefined ? {} : { next }) }
  }

  get(caller: Caller, ref: string): FirewallGroup {
    return this.#view(this.#find(caller, ref))
  }

  #find(caller: Caller, ref: string): Rec<FirewallGroupRecord> {
    return find(this.#deps, NOUN, groupKind, caller.project, ref)
  }

  #view(rec: Rec<FirewallGroupRecord>): FirewallGroup {
    const { schema: _, ...group } = rec.value
    return {
      ...group,
      rules: group.rules.map((rule) => namedRule(this.#deps, rule)),
      generation: rec.version,
      vms: membersOf(this.#deps, rec.id).map(({ id, name }) => ({ id, name })),
    }
  }

  async create(caller: Caller, body: FirewallGroupCreate): Promise<FirewallGroup> {
    const deps = this.#deps
    checkName(deps, NOUN, caller.project, body.name)
    const id = newId(NOUN, deps.randomBytes)
    const rules = planRules(deps, caller.project, body.rules ?? [], '/rules', { id, name: body.name })
    const record: FirewallGroupRecord = {
      schema: 1,
      id,
      name: body.name,
      project: caller.project,
      created_at: new Date(deps.clock.now_ms()).toISOString(),
      description: body.description ?? '',
      rules,
    }
    const key = indexKeys.name(NOUN, caller.project, body.name)
    await commit(
      deps,
      [absent(indexKind, key), ...groupChecks(deps, namedGroups(rules))],
      [put(groupKind, record.id, record), put(indexKind, key, { schema: 1, holder: record.id })],
      indexConflict,
    )
    return await made(() => this.get(caller, record.id))
  }

  async edit(caller: Caller, ref: string, body: FirewallGroupEdit, generation: IfGeneration): Promise<FirewallGroup> {
    const deps = this.#deps
    const rec = this.#find(caller, ref)
    checkGeneration(rec, generation)
    const { project, name } = rec.value
    const rules = body.rules === undefined ? rec.value.rules : planRules(deps, project, body.rules, '/rules')
    const others = namedGroups(rules).filter((id) => id !== rec.id)
    const checks: Check[] = [unchanged(rec), ...groupChecks(deps, others)]
    const writes: Write[] = []
    if (body.name !== undefined && body.name !== name) {
      checkName(deps, NOUN, project, body.name)
      const key = indexKeys.name(NOUN, project, body.name)
      checks.push(absent(indexKind, key))
      writes.push(
        put(indexKind, key, { schema: 1, holder: rec.id }),
        del(indexKind, indexKeys.name(NOUN, project, name)),
      )
    }
    const record: FirewallGroupRecord = {
      ...rec.value,
      name: body.name ?? name,
      description: body.description ?? rec.value.description,
      rules,
    }
    await commit(deps, checks, [put(groupKind, rec.id, record), ...writes], indexConflict)
    if (body.rules !== undefined) await deps.syncNetworks()
    return this.get(caller, rec.id)
  }

  async delete(caller: Caller, ref: string, generation: IfGeneration): Promise<void> {
    const deps = this.#deps
    const rec = this.#find(caller, ref)
    checkGeneration(rec, generation)
    const refuse = () => {
      const vm = deps.view
        .list(vmKind)
        .find(({ value: { spec } }) => namedGroups(spec.firewall?.rules ?? [], spec.firewall?.groups).includes(rec.id))
      if (vm !== undefined)
        throw fail('in_use', `The firewall of the VM "${vm.value.name}" names the group "${rec.value.name}".`, {
          remedy: vm.value.spec.firewall?.groups.includes(rec.id)
            ? `wadah vm edit ${vm.value.name} --remove-firewall-group ${rec.value.name}`
            : `wadah vm firewall ${vm.value.name}`,
        })
      const group = deps.view
        .list(groupKind)
        .find((g) => g.id !== rec.id && namedGroups(g.value.rules).includes(rec.id))
      if (group !== undefined)
        throw fail('in_use', `A rule of the group "${group.value.name}" names the group "${rec.value.name}".`, {
          remedy: `wadah firewall group show ${group.value.name}`,
        })
    }
    refuse()
    await commit(deps, [unchanged(rec)], [put(groupKind, rec.id, rec.value)])
    refuse()
    const { project, name } = rec.value
    await commit(deps, [], [del(groupKind, rec.id), del(indexKind, indexKeys.name(NOUN, project, name))])
  }
}
