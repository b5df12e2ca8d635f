/** How a VM is shown. */
import type { Nic, Vm } from '@wadah/api/schema/vm'
import { formatBytes, since } from '../text/format.ts'
import type { Cell, Style } from './output.ts'

const STYLES: Partial<Record<Vm['status']['state'], Style>> = {
  running: 'green',
  paused: 'yellow',
  starting: 'cyan',
  stopping: 'cyan',
  panicked: 'red',
  'internal-error': 'red',
  unknown: 'red',
  stopped: 'dim',
}

/** `running`, `paused (io-error: the pool is full)`. */
export function stateText(vm: Vm): string {
  const { state, paused_by, reason } = vm.status
  const why = [state === 'paused' ? paused_by : undefined, reason].filter((x) => x !== undefined && x !== '').join(': ')
  return why === '' ? state : `${state} (${why})`
}

export function stateCell(vm: Vm): Cell {
  const style = STYLES[vm.status.state]
  return style === undefined ? stateText(vm) : { text: stateText(vm), style }
}

/** `127.0.0.1:8080→80`, `0.0.0.0:5353→53/udp`. */
export function publishedText(nics: readonly Nic[]): string {
  return nics
    .flatMap((nic) => nic.publish)
    .map((p) => `${p.address}:${p.port}→${p.to}${p.protocol === 'udp' ? '/udp' : ''}`)
    .join(' ')
}

export function addressesText(vm: Vm): string {
  return [...new Set(vm.addresses.map((a) => a.address))].join(' ')
}

export function uptime(vm: Vm, now_ms: number): string {
  return ['running', 'paused', 'starting', 'stopping'].includes(vm.status.state)
    ? since(vm.status.started_at, now_ms)
    : ''
}

export function vmRow(vm: Vm, imageNames: Map<string, string>, now_ms: number): Cell[] {
  const image = vm.spec.image === undefined ? '' : (imageNames.get(vm.spec.image) ?? vm.spec.image)
  return [
    vm.name,
    stateCell(vm),
    addressesText(vm),
    publishedText(vm.spec.nics),
    vm.spec.cpus,
    formatBytes(vm.spec.memory_mib * 2 ** 20),
    image,
    vm.status.accelerator ?? '',
    uptime(vm, now_ms),
  ]
}
