/** What a guest says of itself. */
import { ipv4Of } from '@wadah/api/guest-addresses'
import type { VmSpec } from '@wadah/api/schema/vm'
import type { Deps } from '../context.ts'
import { networkKind } from '../records.ts'
import { healthTarget } from './view.ts'

const AGENT_MS = 3_000

/** Its first IPv4 address, as its agent says; undefined when it has none. @throws WadahError when the agent does not answer */
export async function addressInside(
  { machine }: Pick<Deps, 'machine'>,
  vm: string,
  signal: AbortSignal,
): Promise<string | undefined> {
  const info = await machine.guest(vm).info(AbortSignal.any([signal, AbortSignal.timeout(AGENT_MS)]))
  return ipv4Of(info)[0]
}

/** Whether somebody else gives it its address: on a bridge this host and the guest are neighbours. */
export const isBridged = ({ view }: Pick<Deps, 'view'>, spec: VmSpec): boolean =>
  spec.nics.some((nic) => view.get(networkKind, nic.network)?.value.kind === 'bridge')

/** Where this host reaches its service, if it does. */
export async function whereItServes(
  deps: Pick<Deps, 'view' | 'machine'>,
  vm: string,
  spec: VmSpec,
  signal: AbortSignal,
): Promise<{ address: string; port?: number } | undefined> {
  const known = healthTarget(spec)
  if (known || !isBridged(deps, spec)) return known
  const address = await addressInside(deps, vm, signal).catch(() => undefined)
  return address === undefined ? undefined : { address }
}
