/** Bare QEMU, driven by plain QMP: what an administrator's script would do, without a moment's thought. */
import { spawn } from 'node:child_process'
import { chown, mkdir, open, rm, writeFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { connectAgent } from '@wadah/qmp/agent'
import { connectQmp, type Qmp } from '@wadah/qmp/client'
import type { BootPlan } from '@wadah/ports/machine'
import { argv } from '../../../src/engine/argv.ts'
import { type MoveIdentity, moveIdentity } from '../../../src/engine/migration/certificates.ts'
import type { PairKit } from '../kit.ts'
import { type Guest, type Moved, Standstill } from './guest.ts'

/** As ours are under TCG, so that both sides send the same. */
export const CAPABILITIES = ['events', 'return-path', 'late-block-activate']
const MOVE_MS = 120_000

type Bare = { qmp: Qmp; end: () => Promise<void>; dir: string }
let serial = 0

/** `downtime_limit_ms`: 0 is one pass, as ours; QEMU's own default is 300. `channels`: of multifd, where it is to be used. */
type Means = { downtime_limit_ms: number; channels?: number }

export async function bareGuest(kit: PairKit, memory_mib: number, means: Means): Promise<Guest> {
  const { spec, ...rest } = await kit.request({ memory_mib })
  const plan = await kit.a.plan({ spec, ...rest })
  const { uid } = spec
  let at = await spawned(kit, plan, uid, false)
  await at.qmp.executeAny('cont')
  return {
    sh: (script) => shell(at, script),
    move: async (secure) => {
      const { to, ...moved } = await move(at, () => spawned(kit, plan, uid, true), uid, secure, means)
      at = to
      return moved
    },
    end: () => at.end(),
  }
}

/** The same command line as ours, by the same user, without anything around it. */
async function spawned(kit: PairKit, plan: BootPlan, uid: number, incoming: boolean): Promise<Bare> {
  const dir = `${kit.dir}/bare${serial++}`
  await mkdir(dir, { mode: 0o700 })
  await writeFile(`${dir}/seed`, '')
  await chown(dir, uid, uid)
  await chown(`${dir}/seed`, uid, uid)
  const local = { ...plan.local, directory: dir, ...(incoming ? { arriving: { job: '' } } : {}) }
  const drop = [`--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '--bounding-set=-all', '--no-new-privs', '--']
  const log = await open(`${dir}.log`, 'a')
  const child = spawn('/usr/bin/setpriv', [...drop, plan.local.qemu, ...argv({ ...plan, local })], {
    stdio: ['ignore', 'ignore', 'inherit', log.fd],
  })
  await log.close()
  const gone = new Promise((resolve) => child.once('exit', resolve))
  const qmp = await connectQmp({
    path: `${dir}/qmp.sock`,
    connect_timeout_ms: 60_000,
    greeting_timeout_ms: 60_000,
    gone,
  })
  return {
    qmp,
    dir,
    end: async () => {
      child.kill('SIGKILL')
      await gone
      await qmp.close()
      await rm(dir, { recursive: true, force: true })
    },
  }
}

async function move(
  from: Bare,
  spawnTarget: () => Promise<Bare>,
  uid: number,
  secure: boolean,
  { downtime_limit_ms, channels }: Means,
): Promise<Moved & { to: Bare }> {
  const begun = performance.now()
  const [source, target] = secure
    ? await Promise.all([moveIdentity('s.move', 'source', Date.now()), moveIdentity('t.move', 'target', Date.now())])
    : []
  const to = await spawnTarget()
  const named = channels === undefined ? CAPABILITIES : [...CAPABILITIES, 'multifd']
  const capabilities = named.map((capability) => ({ capability, state: true }))
  const stood = new Standstill()
  for (const side of ['from', 'to'] as const) {
    const { qmp } = side === 'from' ? from : to
    await qmp.executeAny('migrate-set-capabilities', { capabilities })
    if (channels !== undefined) await qmp.executeAny('migrate-set-parameters', { 'multifd-channels': channels })
    qmp.subscribe((e) => stood[side](e.event, e.timestamp.seconds * 1000 + e.timestamp.microseconds / 1000))
  }
  if (source && target) {
    await tls(to, 'server', target, source, uid)
    await tls(from, 'client', source, target, uid)
  } else
    for (const side of [from, to])
      await side.qmp.executeAny('migrate-set-parameters', { 'tls-creds': '', 'tls-hostname': '' })
  await to.qmp.executeAny('migrate-incoming', { uri: 'tcp:127.0.0.1:0' })
  const info = (await to.qmp.executeAny('query-migrate')) as { 'socket-address': { port: string }[] }
  await from.qmp.executeAny('migrate-set-parameters', { 'max-bandwidth': 2 ** 50, 'downtime-limit': downtime_limit_ms })
  const done = from.qmp.waitFor('MIGRATION', (e) => ['completed', 'failed'].includes(e.data.status), {
    timeout_ms: MOVE_MS,
  })
  const runs = to.qmp.waitFor('RESUME', undefined, { timeout_ms: MOVE_MS })
  await from.qmp.executeAny('migrate', { uri: `tcp:127.0.0.1:${info['socket-address'][0]?.port}` })
  if ((await done).data.status !== 'completed') throw new Error('the bare move failed')
  await to.qmp.executeAny('cont')
  await runs
  await from.end()
  return { to, total: performance.now() - begun, stall: stood.ms }
}

async function tls(
  to: Bare,
  end: 'client' | 'server',
  mine: MoveIdentity,
  peer: MoveIdentity,
  uid: number,
): Promise<void> {
  const dir = `${to.dir}/tls`
  await mkdir(dir)
  await chown(dir, uid, uid)
  const files = { 'ca-cert.pem': peer.ca, [`${end}-cert.pem`]: mine.cert, [`${end}-key.pem`]: mine.key }
  for (const [name, text] of Object.entries(files)) await writeFile(`${dir}/${name}`, text)
  const id = `t${serial++}`
  const creds = { 'qom-type': 'tls-creds-x509', id, dir, endpoint: end, 'verify-peer': true, 'sanity-check': false }
  await to.qmp.executeAny('object-add', creds)
  await rm(dir, { recursive: true })
  await to.qmp.executeAny('migrate-set-parameters', {
    'tls-creds': id,
    'tls-hostname': end === 'client' ? peer.name : '',
  })
}

async function shell({ dir }: Bare, script: string): Promise<void> {
  for (let i = 0; ; i++) {
    try {
      await using agent = {
        is: await connectAgent({ path: `${dir}/agent.sock` }),
        [Symbol.asyncDispose]: async () => agent.is.close(),
      }
      await agent.is.exec({ path: 'sh', args: ['-c', script], timeout_ms: 120_000 })
      return
    } catch (error) {
      if (i > 60) throw error
      await sleep(1_000)
    }
  }
}
