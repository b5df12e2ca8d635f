/** Rules as the scheduler reads them, and what is broken of them now. Pure over the view. */
import { parseSelector, selects } from '@wadah/api/selector'
import type { Rule } from '@wadah/scheduler/snapshot'
import type { CachedView } from '@wadah/store/cache'
import { placementKind, type RuleRecord, ruleKind, type VmRecord, vmKind } from '../records.ts'

type View = Pick<CachedView, 'get' | 'list'>
type Labelled = Pick<VmRecord, 'id' | 'project' | 'labels'>

/** The VMs that a rule is for now. */
export function membersOf<V extends Labelled>(rule: RuleRecord, vms: readonly V[]): V[] {
  const terms = rule.selector === undefined ? undefined : parseSelector(rule.selector)
  return vms.filter(
    (vm) =>
      vm.project === rule.project && (rule.vms.includes(vm.id) || (terms !== undefined && selects(terms, vm.labels))),
  )
}

/** All of them, for a plan. @param more VMs that are not there yet */
export function scheduled(view: View, more: readonly Labelled[] = []): Rule[] {
  const vms = [...view.list(vmKind).map((vm) => vm.value), ...more]
  return view.list(ruleKind).map(({ value: rule }): Rule => {
    const { id, name, strict, kind } = rule
    const who = { id, name, strict, vms: { ids: membersOf(rule, vms).map((vm) => vm.id) } }
    return kind === 'together' || kind === 'apart'
      ? { ...who, kind }
      : { ...who, kind: kind === 'on' ? 'on' : 'not_on', hosts: { ids: rule.hosts } }
  })
}

/** Those of its VMs that stand against it where they are. Of `together` those that are not with the most of them. */
export function brokenOf(view: View, rule: RuleRecord, members: readonly VmRecord[]): VmRecord[] {
  const hostOf = (vm: VmRecord) => view.get(placementKind, vm.id)?.value.host
  const counts = new Map<string, number>()
  for (const vm of members) {
    const host = hostOf(vm)
    if (host !== undefined) counts.set(host, (counts.get(host) ?? 0) + 1)
  }
  const [most] = [...counts].toSorted((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1))
  return members.filter((vm) => {
    const host = hostOf(vm)
    if (host === undefined) return false
    switch (rule.kind) {
      case 'apart':
        return (counts.get(host) ?? 0) > 1
      case 'together':
        return host !== most?.[0]
      case 'on':
        return !rule.hosts.includes(host)
      case 'not-on':
        return rule.hosts.includes(host)
    }
  })
}
