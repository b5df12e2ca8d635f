/**
 * node measure.ts ROUNDS MEMORY_MIB FILL_MIB — moves of an idle guest, ours and bare QEMU by turns, plain and TLS. Prints one JSON. For
 * bench/migration.ts, which may not come closer to these rooms than a process.
 */
import { spawn } from 'node:child_process'
import { chown, mkdir, open, readFile, rm, writeFile } from 'node:fs/promises'
import { connectAgent } from '@wadah/qmp/agent'
import { connectQmp, type Qmp } from '@wadah/qmp/client'
import type { BootPlan } from '@wadah/ports/machine'
import type { HostMachine } from '../../src/engine/machine.ts'
import { argv } from '../../src/engine/argv.ts'
import { type MoveIdentity, moveIdentity } from '../../src/engine/migration/certificates.ts'
import { move, never, pairKit } from './kit.ts'

const [rounds = 5, memory_mib = 256, fill = 64] = process.argv.slice(2).map(Number)
/** As ours are under TCG, so that both sides send the same. */
const CAPABILITIES = ['events', 'return-path', 'late-block-activate']
const DOWNTIME_LIMIT_MS = 0
const FILL = `mkdir -p /fill; mount -t tmpfs none /fill; dd if=/dev/urandom of=/fill/a bs=1M count=${fill} 2>/dev/null; echo filled`

type Bare = { qmp: Qmp; end: () => Promise<void>; dir: string }
type Seen = { event: string; status?: string; at: number }

const kit = await pairKit()
const { a, b } = kit
let serial = 0

/** The same command line as ours, by the same user, without anything around it. */
async function bare(plan: BootPlan, uid: number, incoming: boolean): Promise<Bare> {
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

/** What an administrator's script would do, without a moment's thought. */
async function bareMove(from: Bare, plan: BootPlan, uid: number, secure: boolean) {
  const begun = performance.now()
  const [source, target] = secure
    ? await Promise.all([moveIdentity('s.move', 'source', Date.now()), moveIdentity('t.move', 'target', Date.now())])
    : []
  const to = await bare(plan, uid, true)
  const capabilities = CAPABILITIES.map((capability) => ({ capability, state: true }))
  const seen: Seen[] = []
  for (const side of [from, to]) {
    await side.qmp.executeAny('migrate-set-capabilities', { capabilities })
    side.qmp.subscribe((e) => {
      const at = e.timestamp.seconds * 1000 + e.timestamp.microseconds / 1000
      seen.push({ event: `${side === from ? 'from' : 'to'} ${e.event}`, at })
    })
  }
  if (source && target) {
    await tls(to, 'server', target, source, uid)
    await tls(from, 'client', source, target, uid)
  } else
    for (const side of [from, to])
      await side.qmp.executeAny('migrate-set-parameters', { 'tls-creds': '', 'tls-hostname': '' })
  await to.qmp.executeAny('migrate-incoming', { uri: 'tcp:127.0.0.1:0' })
  const info = (await to.qmp.executeAny('query-migrate')) as { 'socket-address': { port: string }[] }
  await from.qmp.executeAny('migrate-set-parameters', { 'max-bandwidth': 2 ** 50, 'downtime-limit': DOWNTIME_LIMIT_MS })
  const done = from.qmp.waitFor('MIGRATION', (e) => ['completed', 'failed'].includes(e.data.status), {
    timeout_ms: 120_000,
  })
  const runs = to.qmp.waitFor('RESUME', undefined, { timeout_ms: 120_000 })
  await from.qmp.executeAny('migrate', { uri: `tcp:127.0.0.1:${info['socket-address'][0]?.port}` })
  if ((await done).data.status !== 'completed') throw new Error('the bare move failed')
  await to.qmp.executeAny('cont')
  await runs
  await from.end()
  const at = (event: string) => seen.findLast((s) => s.event === event)?.at ?? Number.NaN
  return { to, total: performance.now() - begun, stall: at('to RESUME') - at('from STOP') }
}

async function agentOf({ dir }: Bare): Promise<void> {
  for (let i = 0; ; i++) {
    try {
      await using agent = {
        is: await connectAgent({ path: `${dir}/agent.sock` }),
        [Symbol.asyncDispose]: async () => agent.is.close(),
      }
      await agent.is.exec({ path: 'sh', args: ['-c', FILL], timeout_ms: 120_000 })
      return
    } catch (error) {
      if (i > 60) throw error
      await new Promise((resolve) => setTimeout(resolve, 1_000))
    }
  }
}

const raw: Record<string, number[]> = {}
const add = (name: string, value: number) => (raw[name] ??= []).push(value)
try {
  const ours = await kit.start(a, await kit.request({ memory_mib }))
  await kit.sh(a, ours.vm, FILL, 120_000)
  // The bare guest is made the same way.
  const other = await kit.request({ memory_mib })
  const plan = await a.plan(other)
  const { uid } = other.spec
  let from = await bare(plan, uid, false)
  await from.qmp.executeAny('cont')
  await agentOf(from)
  let at: { request: typeof ours.request; from: HostMachine; to: HostMachine } = {
    request: ours.request,
    from: a,
    to: b,
  }
  for (let i = 0; i <= rounds; i++) {
    for (const secure of i % 2 === 0 ? [false, true] : [true, false]) {
      const mine = async () => {
        const begun = performance.now()
        const { report } = await move(kit, at.request, at.from, at.to, { tls: secure })
        at = { request: { ...at.request, epoch: at.request.epoch + 1 }, from: at.to, to: at.from }
        return { total: performance.now() - begun, stall: report.stall_ms }
      }
      const theirs = async () => {
        const moved = await bareMove(from, plan, uid, secure)
        from = moved.to
        return moved
      }
      const kind = secure ? 'tls' : 'plain'
      for (const side of i % 2 === 0 ? ['ours', 'bare'] : ['bare', 'ours']) {
        const found = side === 'ours' ? await mine() : await theirs()
        // The first is for warming up.
        if (i > 0) for (const what of ['total', 'stall'] as const) add(`${side} ${kind} ${what}`, found[what])
      }
    }
  }
  await from.end()
  const version = (await readFile('/proc/version', 'utf8')).split(' ')[2]
  console.log(JSON.stringify({ raw, capabilities: CAPABILITIES, downtime_limit_ms: DOWNTIME_LIMIT_MS, version }))
  never.throwIfAborted()
} finally {
  await kit.close()
}
