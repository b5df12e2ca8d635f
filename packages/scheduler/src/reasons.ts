/** Why not: typed problems for programs, and their text for people. */
import type { VmState } from '@wadah/api/schema/vm'
import type { Accelerator, Rule } from './snapshot.ts'

/** What the scheduler found. Names, not ids, where people read them. */
export type Problem =
  | { code: 'host_down' | 'host_maintenance' | 'host_draining' | 'already_there' }
  /** `of: 'all'`: too much for the host even when it is empty. */
  | { code: 'no_room_memory'; needed_mib: number; free_mib: number; of: 'free' | 'all' }
  | { code: 'no_room_disk'; needed_bytes: number; free_bytes: number }
  | { code: 'pool_not_reached'; pools: string[]; why?: { detail: string; remedy: string } }
  | { code: 'network_not_there'; networks: string[] }
  | { code: 'accelerator_differs'; vm_has: Accelerator; host_has: Accelerator }
  | { code: 'cpu_flags_missing'; flags: string[] }
  | { code: 'machine_type_missing'; machine: string }
  | { code: 'qemu_older'; vm_has: string; host_has: string }
  | { code: 'passthrough'; devices: string[] }
  | { code: 'pinned'; to: string }
  | { code: 'held'; detail: string; remedy: string }
  | { code: 'vm_busy'; state: VmState }
  | { code: 'vm_moving'; to: string }
  | { code: 'source_down'; on: string }
  | { code: 'affinity'; rule: string; kind: Rule['kind']; strict: boolean; others: string[] }
  /** It must stay with others that cannot move. */
  | { code: 'held_by_group'; rule: string; by: string }
  | { code: 'no_host'; hosts: number }
  /** Of a host that would do: why it comes later than others. */
  | { code: 'load_unknown' | 'load_stale' }
  | { code: 'failed_lately'; times: number }
  /** Notes of a plan. */
  | { code: 'nothing_to_do' | 'host_not_known' }
  | { code: 'arriving'; vm: string }
  | { code: 'reserved_there'; memory_mib: number }
  | { code: 'frees_room'; on: string; for: string }
  | { code: 'moved_since'; now: string }
  | { code: 'vm_gone'; vm: string }

export type ReasonCode = Problem['code']
/** `host`: the name of the host it is about, where it is about one. */
export type Reason = Problem & { host?: string; detail: string; remedy: string }

/** How a problem can be helped. `never`: no other plan helps; `room`: another order, or room that is made, may. */
export function helpOf(code: ReasonCode): 'room' | 'never' {
  return code === 'no_room_memory' || code === 'no_room_disk' || code === 'affinity' ? 'room' : 'never'
}

/** @param vm name of the VM; @param host name of the host */
export function explain(problem: Problem, vm: string, host?: string): Reason {
  const [detail, remedy] = words(problem, vm, host ?? 'the host')
  return { ...problem, ...(host === undefined ? {} : { host }), detail, remedy }
}

const gib = (bytes: number): string => `${Math.ceil((bytes / 2 ** 30) * 10) / 10} GiB`
/** `a, b, c and 4 more` */
function list(names: readonly string[], most = 4): string {
  const more = names.length - most
  return more > 0 ? `${names.slice(0, most).join(', ')} and ${more} more` : names.join(', ')
}

function words(p: Problem, vm: string, host: string): [detail: string, remedy: string] {
  switch (p.code) {
    case 'host_down':
      return [`${host} is down.`, `bring ${host} back`]
    case 'host_maintenance':
      return [`${host} is in maintenance.`, `end the maintenance of ${host}`]
    case 'host_draining':
      return [`${host} is being emptied.`, `stop emptying ${host}, or wait until its maintenance is over`]
    case 'already_there':
      return [`${vm} is on ${host} already.`, 'name another host']
    case 'no_room_memory':
      return p.of === 'all'
        ? [
            `${vm} has ${p.needed_mib} MiB of RAM; ${host} gives out at most ${p.free_mib} MiB in all.`,
            `give ${vm} less memory (wadah vm edit ${vm} --memory …), or use a bigger host`,
          ]
        : [
            `${vm} needs ${p.needed_mib} MiB of RAM; ${host} has ${p.free_mib} MiB left to promise.`,
            `shut down VMs on ${host}, or give ${vm} less memory (wadah vm edit ${vm} --memory …)`,
          ]
    case 'no_room_disk':
      return [
        `The local disks of ${vm} need ${gib(p.needed_bytes)} in one pool each; the roomiest local pool of ${host} has ${Math.floor((p.free_bytes / 2 ** 30) * 10) / 10} GiB left to promise.`,
        `make room in a local pool of ${host} (wadah volume list), or move the disks to a shared pool`,
      ]
    case 'pool_not_reached':
      if (p.why) return [p.why.detail, p.why.remedy]
      return [
        `${host} does not reach the shared ${p.pools.length === 1 ? 'pool' : 'pools'} ${list(p.pools)}.`,
        `make ${p.pools.length === 1 ? 'it' : 'them'} reachable from ${host}`,
      ]
    case 'network_not_there':
      return [
        `${host} does not have the ${p.networks.length === 1 ? 'network' : 'networks'} ${list(p.networks)}.`,
        `make ${p.networks.length === 1 ? 'it' : 'them'} available on ${host}`,
      ]
    case 'accelerator_differs':
      return [
        `${vm} runs under ${p.vm_has.toUpperCase()}, ${host} has ${p.host_has.toUpperCase()}; a running guest cannot change between them.`,
        `shut ${vm} down first (wadah vm shutdown ${vm})`,
      ]
    case 'cpu_flags_missing':
      return [
        `The guest of ${vm} was shown CPU flags that ${host} lacks: ${list(p.flags, 8)}.`,
        `shut ${vm} down first (wadah vm shutdown ${vm}), or use a host that has them`,
      ]
    case 'machine_type_missing':
      return [
        `The QEMU of ${host} does not know the machine type ${p.machine} of ${vm}.`,
        `upgrade QEMU on ${host}, or shut ${vm} down first (wadah vm shutdown ${vm})`,
      ]
    case 'qemu_older':
      return [
        `${vm} runs in QEMU ${p.vm_has}; ${host} has the older ${p.host_has}, which cannot go on from it.`,
        `upgrade QEMU on ${host}, or shut ${vm} down first (wadah vm shutdown ${vm})`,
      ]
    case 'passthrough':
      return [
        `${vm} was given ${p.devices.length === 1 ? 'a device' : 'devices'} of its host: ${list(p.devices)}.`,
        `take ${p.devices.length === 1 ? 'it' : 'them'} away while ${vm} is off (wadah vm shutdown ${vm}, then wadah vm edit ${vm})`,
      ]
    case 'pinned':
      return [`${vm} may only be on ${p.to}.`, `take the pin of ${vm} away`]
    case 'held':
      return [p.detail, p.remedy]
    case 'vm_busy':
      return [
        `${vm} is ${p.state}: neither at rest nor running so that it could be moved.`,
        `wait until that is over; if it stays so, wadah vm show ${vm} says why, and wadah vm stop ${vm} ends it`,
      ]
    case 'vm_moving':
      return [`${vm} is being moved to ${p.to} already.`, 'wait for that (wadah job list)']
    case 'source_down':
      return [`${vm} is on ${p.on}, which is down: nobody there can be asked for it.`, `bring ${p.on} back`]
    case 'affinity':
      return ruleWords(p, vm, host)
    case 'held_by_group':
      return [
        `${vm} must stay together with ${p.by} (rule ${p.rule}), which cannot move.`,
        `help ${p.by} first, or make the rule ${p.rule} not strict`,
      ]
    case 'no_host':
      return p.hosts === 0
        ? [`There is no other host that could take ${vm}.`, 'add a host']
        : [`None of ${p.hosts} ${p.hosts === 1 ? 'host' : 'hosts'} can take ${vm}.`, 'see the reasons of each host']
    case 'load_unknown':
      return [`The load of ${host} is not known; it is taken as busy.`, `look at ${host}`]
    case 'load_stale':
      return [
        `The load of ${host} was measured long ago; it is taken as no lower than its VMs suggest.`,
        `look at ${host}`,
      ]
    case 'failed_lately':
      return [
        `${p.times === 1 ? 'A move' : `${p.times} moves`} of ${vm} to ${host} failed lately.`,
        'see why (wadah job list), or use another host',
      ]
    case 'nothing_to_do':
      return ['There is nothing to do.', 'nothing']
    case 'host_not_known':
      return [`There is no host ${host}.`, 'see which there are']
    case 'arriving':
      return [
        `${p.vm} is just being moved to ${host}.`,
        'wait for that and plan again, or cancel it (wadah job cancel)',
      ]
    case 'reserved_there':
      return [
        `A job has reserved ${p.memory_mib} MiB of RAM on ${host}.`,
        'wait for it and plan again (wadah job list)',
      ]
    case 'frees_room':
      return [`${vm} makes room on ${p.on} for ${p.for}.`, 'nothing']
    case 'moved_since':
      return [`${vm} was moved to ${p.now} since, so it stays there.`, `move it by hand if it shall go back`]
    case 'vm_gone':
      return [`The VM ${p.vm} is not there any more.`, 'nothing']
  }
}

function ruleWords(p: Extract<Problem, { code: 'affinity' }>, vm: string, host: string): [string, string] {
  const rule = `${p.strict ? 'strict ' : ''}rule ${p.rule}`
  const remedy = p.strict ? `change the rule ${p.rule}, or make it not strict` : 'nothing: it is kept where it can be'
  switch (p.kind) {
    case 'apart':
      return [`${host} has ${list(p.others)}, from which the ${rule} keeps ${vm} apart.`, remedy]
    case 'together':
      return [`${vm} belongs together with ${list(p.others)} (${rule}), not on ${host}.`, remedy]
    case 'on':
      return [`${host} is none of the hosts that the ${rule} gives ${vm}.`, remedy]
    case 'not_on':
      return [`The ${rule} keeps ${vm} off ${host}.`, remedy]
  }
}
