/** What both ends set before a move and take back after it: capabilities, parameters, TLS. */
import { isIP } from 'node:net'
import { fail } from '@wadah/api/fault'
import type { MoveAddress, MovePeer } from '@wadah/ports/migration'
import type { VmDirectory } from '../directory.ts'
import type { RunningVm } from '../running-vm.ts'
import type { MoveIdentity } from './certificates.ts'

const CREDS = 'move-tls'
const AUTHZ = 'move-authz'

/** Without these three no move is safe (docs/migration.md, trap 1). */
const ALWAYS = { events: true, 'return-path': true, 'late-block-activate': true }
const ALL = [
  ...Object.keys(ALWAYS),
  'postcopy-ram',
  'postcopy-preempt',
  'pause-before-switchover',
  'background-snapshot',
  'x-ignore-shared',
]

export type Setup = {
  postcopy: boolean
  /** A second connection for pages that the guest waits for. */
  preempt: boolean
  /** QEMU waits for us between the stop and the last of RAM: mirrors of disks are ended there. */
  pause: boolean
}

/** Sets exactly these; whatever an earlier one left is taken back. @throws `host_lacks` when QEMU can't */
export async function setCapabilities(running: RunningVm, setup: Setup): Promise<void> {
  const wanted: Record<string, boolean> = {
    ...ALWAYS,
    'postcopy-ram': setup.postcopy,
    'postcopy-preempt': setup.preempt,
    'pause-before-switchover': setup.pause,
  }
  const there = (await running.execute('query-migrate-capabilities')) as { capability: string; state: boolean }[]
  const known = new Set(there.map((c) => c.capability))
  const missing = Object.keys(wanted).filter((name) => wanted[name] && !known.has(name))
  if (missing.length > 0)
    throw fail('host_lacks', `This QEMU can't be moved safely: it has no ${missing.join(', ')}.`, {
      remedy: 'QEMU 7.2 or newer; the VM can be moved while it is stopped',
    })
  const capabilities = ALL.filter((name) => known.has(name)).map((capability) => ({
    capability,
    state: wanted[capability] === true,
  }))
  await running.execute('migrate-set-capabilities', { capabilities })
}

/** As a QEMU that was never moved. */
export async function dropSetup(running: RunningVm): Promise<void> {
  if (running.isGone) return
  const there = (await running.execute('query-migrate-capabilities')) as { capability: string; state: boolean }[]
  const capabilities = there.flatMap((c) =>
    ALL.includes(c.capability) && c.state ? [{ capability: c.capability, state: false }] : [],
  )
  if (capabilities.length > 0) await running.execute('migrate-set-capabilities', { capabilities })
  await running.execute('migrate-set-parameters', { 'tls-creds': '', 'tls-hostname': '', 'tls-authz': '' })
  await dropKeys(running)
}

async function dropKeys(running: RunningVm): Promise<void> {
  for (const id of [CREDS, AUTHZ]) await running.execute('object-del', { id }).catch(() => {})
}

/** TLS for this end. QEMU reads the files when the object is made; they are gone again when this returns. */
export async function setTls(
  running: RunningVm,
  directory: VmDirectory,
  end: 'client' | 'server',
  mine: MoveIdentity,
  peer: MovePeer,
  uid: number | null,
): Promise<void> {
  const files = {
    'ca-cert.pem': peer.ca,
    [`${end}-cert.pem`]: mine.cert,
    [`${end}-key.pem`]: mine.key,
  }
  // A daemon that died right after a move left that one's.
  await dropKeys(running)
  await directory.writeMove(files, uid)
  try {
    await running.execute('object-add', {
      'qom-type': 'tls-creds-x509',
      id: CREDS,
      dir: directory.move,
      endpoint: end,
      'verify-peer': true,
      // It would hold our own certificate against the CA in the folder, which is the peer's: each end trusts the other's and no more.
      'sanity-check': false,
    })
  } finally {
    await directory.dropMove()
  }
  if (end === 'client') {
    await running.execute('migrate-set-parameters', { 'tls-creds': CREDS, 'tls-hostname': peer.name })
    return
  }
  await running.execute('object-add', { 'qom-type': 'authz-simple', id: AUTHZ, identity: `CN=${peer.name}` })
  await running.execute('migrate-set-parameters', { 'tls-creds': CREDS, 'tls-authz': AUTHZ })
}

/** For disks: the same credentials and the same check of the peer. */
export const nbdServerTls = { 'tls-creds': CREDS, 'tls-authz': AUTHZ }
export const nbdClientTls = (name: string) => ({ 'tls-creds': CREDS, 'tls-hostname': name })

export function tcpUri({ host, port }: MoveAddress): string {
  const kind = isIP(host)
  if (kind === 0 || !Number.isInteger(port) || port < 0 || port > 65_535)
    throw fail('invalid', `"${host}:${port}" is no address and port to move to; name an IPv4 or IPv6 address.`)
  return `tcp:${kind === 6 ? `[${host}]` : host}:${port}`
}
