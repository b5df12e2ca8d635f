/** Certificates of a cluster as its hosts have them, and free ports. */
import { createServer } from 'node:net'
import { type Certificates } from '../../src/cluster/identity.ts'
import { certify } from '../../src/cluster/parts.ts'
import { makeAuthority } from '../../src/cluster/pki.ts'

export const A = 'host-aaaaaaaaaa'
export const B = 'host-bbbbbbbbbb'

export async function authorities() {
  const [hosts, etcd] = await Promise.all([makeAuthority('hosts', Date.now()), makeAuthority('etcd', Date.now())])
  return { schema: 1 as const, hosts, etcd }
}
export type Authorities = Awaited<ReturnType<typeof authorities>>

/** `at_ms`: when they were made. */
export const certificatesOf = (
  by: Authorities,
  host: string,
  address = '127.0.0.1',
  at_ms = Date.now(),
): Promise<Certificates> => certify(by, { id: host, address }, at_ms)
/** Certificates of so long ago, or of so far ahead, do not hold now. */
export const YEAR_MS = 365 * 86_400_000

export async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((ready) => server.listen(0, '127.0.0.1', ready))
  const { port } = server.address() as { port: number }
  await new Promise((done) => server.close(done))
  return port
}
