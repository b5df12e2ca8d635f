/** The demo as data: three servers, what each is built from, and how its address is written. Pure. */
import type { VmMove } from '@wadah/api/schema/migration'
import type { Vm } from '@wadah/api/schema/vm'

export type ServiceKind = 'smb' | 'ipp' | 'http'
export type DemoServer = {
  name: string
  recipe: string
  service: ServiceKind
  guestPort: number
  firstPort: number
  path: string
}

export const DEMO_SERVERS: readonly DemoServer[] = [
  { name: 'batagor', recipe: 'file-server', service: 'smb', guestPort: 445, firstPort: 10_445, path: '/share' },
  { name: 'mieayam', recipe: 'print-server', service: 'ipp', guestPort: 631, firstPort: 10_631, path: '/printers/pdf' },
  // Not 10080: that is one of the ports browsers refuse (WHATWG Fetch, "port blocking").
  { name: 'ketoprak', recipe: 'web-server', service: 'http', guestPort: 80, firstPort: 18_080, path: '/' },
]
export const DEMO_NETWORK = 'demo'
export const DEMO_USER = 'demo'
export const DEMO_MEMORY_MIB = 512
export const DEMO_INSTANCE = 'demo'
export const DEMO_FIRST_LISTEN_PORT = 7444

export type Credentials = { user: string; password: string }
/** What one check of a service with a real client said. */
export type Check = { ok: boolean; detail: string }
export type ServerStatus = {
  name: string
  service: ServiceKind
  endpoint: string
  credentials: Credentials | null
  accelerator: string
  ready_ms: number
  check: Check
}
/** A snapshot with RAM that was taken, and gone back to. */
export type DemoSnapshot = { vm: string; name: string; stall_ms: number; revert_ms: number }
/** A move between hosts, with what a client saw of it that was at work all the while. */
export type DemoMove = VmMove & {
  client_errors: number
  client: { requests: number; bytes: number; longest_ms: number; errors: string[] }
}
export type DemoHost = { name: string; address: string; state: string; vms: string[] }
export type DemoStatus = { servers: ServerStatus[]; snapshot?: DemoSnapshot; hosts: DemoHost[]; moves: DemoMove[] }

/** `smb://127.0.0.1:10445/share`. Every address of this host is also reached at 127.0.0.1. */
export function endpointOf(server: DemoServer, address: string, port: number): string {
  return `${server.service}://${address === '0.0.0.0' ? '127.0.0.1' : address}:${port}${server.path}`
}

/** Where a VM's service is published, as the daemon has it. */
export function publishedAt(vm: Vm, guestPort: number): { address: string; port: number } | undefined {
  const found = vm.spec.nics.flatMap((nic) => nic.publish).find((p) => p.to === guestPort && p.protocol === 'tcp')
  return found && { address: found.address, port: found.port }
}

type OwnState = {
  port?: number
  /** On the network that the hosts of a lab have in common; the port leads there. */
  address?: string
  start_requested_ms?: number
  ready_ms?: number
  accelerator?: string
}

/** Where this machine's clients reach a server; of one that publishes its port by itself the VM says it. */
export function reachOf(state: DemoState, server: DemoServer, vm?: Vm): { host: string; port: number } | undefined {
  const own = state.servers[server.name]
  const at =
    (vm ? publishedAt(vm, server.guestPort) : undefined) ??
    (own?.port === undefined ? undefined : { address: state.publish_address, port: own.port })
  return at && { host: at.address === '0.0.0.0' ? '127.0.0.1' : at.address, port: at.port }
}

/** Kept (0600) in the demo's data folder, so that an interrupted demo goes on where it was. */
export type DemoState = {
  schema: 1
  listen: string
  publish_address: string
  credentials: Credentials
  /** Its servers run on the hosts of a lab; how many these are. */
  lab?: { hosts: number }
  servers: Record<string, OwnState>
  snapshot?: DemoSnapshot
  moves?: DemoMove[]
}

/** Reads what an earlier run wrote; undefined for anything else. */
export function parseState(text: string): DemoState | undefined {
  try {
    const s = JSON.parse(text) as Partial<DemoState>
    const whole =
      s.schema === 1 &&
      typeof s.listen === 'string' &&
      typeof s.publish_address === 'string' &&
      typeof s.credentials?.user === 'string' &&
      typeof s.credentials.password === 'string' &&
      typeof s.servers === 'object' &&
      s.servers !== null
    return whole ? (s as DemoState) : undefined
  } catch {
    return undefined
  }
}
