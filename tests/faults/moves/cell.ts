/** One cell of the matrix: a move, held at its phase; a fault; and what must be true afterwards. */
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { endpoints } from '@wadah/api/endpoints/all'
import type { Job } from '@wadah/api/schema/job'
import type { Vm } from '@wadah/api/schema/vm'
import { type Cell, type Disks, type Phase, type Result } from './cells.ts'
import { VM, beginWriting, bootId, count, lookAt } from './guest.ts'
import * as host from './lab.ts'
import { HOSTS, within } from './lab.ts'

/** Never moved to, never killed: what is asked is asked there. */
export const WATCHER = 3
/** The writer needs this long to have something to lose. */
const WRITE_MS = 1_200
const REACH_MS = 120_000
/** Longer than every deadline of a move in which somebody waits for somebody else. */
const SETTLE_MS = 240_000
/** As long as a fault lasts that does not end by itself. */
const LASTS_MS = 100_000
/** A copying of some seconds, to be caught in the middle. */
const SLOW_MIB = 12
const SLOWLY: readonly Phase[] = ['source-mirror', 'source-copy', 'source-follow']
/** QEMU goes on meanwhile: it is caught in the middle. */
const IN_THE_MIDDLE: readonly Phase[] = ['source-mirror', 'source-copy']

const api = () => host.apiOf(WATCHER)
const vm = () => api().call(endpoints.vms.get, { params: { vm: VM } })
const ended = (job: Job | undefined) => job !== undefined && ['done', 'failed', 'cancelled'].includes(job.state)

async function placedOn(): Promise<number> {
  const { placement } = await vm()
  const { hosts } = await api().call(endpoints.cluster.get)
  const name = hosts.find((h) => h.id === placement.host)?.name
  return HOSTS.find((h) => host.nameOf(h) === name) ?? 0
}

/** Whether it does; one that is stopped, as a case or what came after it may have left it, is started. */
async function guestAnswers(): Promise<boolean> {
  const status = (await vm().catch(() => undefined))?.status
  if (status?.state === 'stopped') {
    // Somebody else may start it, or its last job may not have ended yet: it is tried again.
    const job = await api()
      .call(endpoints.vms.start, { params: { vm: VM } })
      .catch(() => undefined)
    if (job) await api().wait(job, { signal: AbortSignal.timeout(60_000) })
  }
  return status?.state === 'running' && status.agent === 'connected'
}

/** The VM runs on one of the first two hosts with its writer in it. */
async function makeReady(disks: Disks): Promise<{ source: number; target: number; boot: string }> {
  if (!(await within(180_000, guestAnswers, 500))) throw new Error('no guest')
  let source = await placedOn()
  if (source === WATCHER) {
    const body = { to: host.nameOf(1) }
    await api().wait(await api().call(endpoints.vms.migrate, { params: { vm: VM }, body }), {})
    source = await placedOn()
  }
  const boot = await beginWriting(WATCHER, disks === 'local')
  await host.sleep(WRITE_MS)
  return { source, target: source === 1 ? 2 : 1, boot }
}

type Roles = { source: number; target: number }
/** What the fault is; returns how it ends, and whether it ends only after the case was looked at. */
async function strike(
  { fault, phase }: Cell,
  { source, target }: Roles,
): Promise<{ lasts: boolean; heal: () => Promise<void> }> {
  const nothing = async () => undefined
  const cut = async (ms?: number) => {
    await host.lab('cut', host.nameOf(source), host.nameOf(target))
    // It goes on over the cut line: mirrors are ended over it.
    if (phase === 'source-switch') host.letGo()
    const heal = async () => void (await host.lab('heal'))
    if (ms === undefined) return { lasts: true, heal }
    await host.sleep(ms)
    await heal()
    return { lasts: false, heal: nothing }
  }
  const qemuOf = (on: number) => host.qemus().filter((q) => q.host === on)
  switch (fault) {
    case 'source-daemon':
    case 'target-daemon':
    case 'both-daemons': {
      const whose = fault === 'both-daemons' ? [source, target] : [fault === 'source-daemon' ? source : target]
      await Promise.all(whose.map((h) => host.killDaemon(h)))
      host.letGo()
      await Promise.all(whose.map((h) => host.startDaemon(h)))
      return { lasts: false, heal: nothing }
    }
    case 'source-qemu':
    case 'target-qemu':
      host.signalAll(qemuOf(fault === 'source-qemu' ? source : target), 'SIGKILL')
      return { lasts: false, heal: nothing }
    case 'cut-1s':
      return cut(1_000)
    case 'cut-30s':
      return cut(30_000)
    case 'cut-ever':
      return cut()
    case 'source-host':
    case 'target-host': {
      const which = fault === 'source-host' ? source : target
      await host.killHost(which)
      return { lasts: true, heal: async () => void (await host.startDaemon(which)) }
    }
    case 'store-away': {
      const all = host.etcds()
      host.signalAll(all, 'SIGSTOP')
      host.letGo()
      await host.sleep(20_000)
      host.signalAll(all, 'SIGCONT')
      return { lasts: false, heal: nothing }
    }
    case 'store-killed':
      host.signalAll(host.etcds(), 'SIGKILL')
      return { lasts: false, heal: nothing }
    case 'target-full':
      await host.fillUp(target)
      return { lasts: true, heal: () => host.makeRoom(target) }
  }
}

type Seen = { vm: Vm | undefined; job: Job | undefined; running: number }
const look = async (id: string): Promise<Seen> => ({
  vm: await vm().catch(() => undefined),
  job: await api()
    .call(endpoints.jobs.get, { params: { job: id } })
    .catch(() => undefined),
  running: host.qemus().length,
})
const isQuiet = (s: Seen) =>
  ended(s.job) &&
  s.vm !== undefined &&
  ((s.vm.status.state === 'running' && s.running === 1) ||
    // One that is started again by itself is not at rest yet.
    (s.vm.status.state === 'stopped' && s.running === 0 && s.vm.status.restart_at === undefined))

const words = ({ vm, job, running }: Seen) => {
  const { fault, attention } = job ?? {}
  const said = fault ? `: ${fault.code}: ${fault.detail}` : ''
  const needs = attention ? `; ${attention.fault.detail} ${attention.fault.remedy ?? ''}` : ''
  const why = vm?.status.reason ? ` (${vm.status.reason})` : ''
  return `vm ${vm?.status.state ?? 'not shown'}${why}, ${running} QEMU, job ${job?.state ?? 'not shown'}${said}${needs}`
}

/** Nothing of it is where it is not, and on no host is anything that nobody knows. */
function leftovers(on: number | undefined): string[] {
  return HOSTS.flatMap((h) => {
    const t = host.traces(h)
    const own = h === on
    const wrong: string[] = []
    if (t.qemus !== (own ? 1 : 0)) wrong.push(`${host.nameOf(h)} has ${t.qemus} QEMU`)
    if (t.taps.length !== (own ? 1 : 0)) wrong.push(`${host.nameOf(h)} has the taps ${t.taps.join(', ') || 'none'}`)
    if (t.groups.length !== (own ? 1 : 0))
      wrong.push(`${host.nameOf(h)} has the groups ${t.groups.join(', ') || 'none'}`)
    return wrong
  })
}
const folders = (on: number) =>
  HOSTS.flatMap((h) =>
    h !== on && host.traces(h).folders.length > 0 ? [`${host.nameOf(h)} has a folder of the VM`] : [],
  )
/** Every file of every pool, every record of a volume, and what pools have promised. Where the VM is `on` is told as "its host": the same before and after a move. */
async function volumes(on: number): Promise<string> {
  const { disks } = (await vm()).spec
  const [all, pools] = await Promise.all([
    api().call(endpoints.volumes.list, { query: {} }),
    api().call(endpoints.pools.list, { query: {} }),
  ])
  const where = (h: string | number, id: string) =>
    (h === on || h === host.nameOf(on)) && disks.some((d) => id.startsWith(d.volume)) ? 'its host' : String(h)
  const shared = ['volumes', 'tmp'].flatMap((d) => {
    const dir = join(host.sharedDir, 'wadah', d)
    return existsSync(dir) ? readdirSync(dir) : []
  })
  const local = HOSTS.flatMap((h) => host.poolFiles(h).map((file) => `${file} at ${where(h, file)}`))
  const records = all.items.map((v) => {
    const pool = pools.items.find((p) => p.id === v.pool)
    return `${v.id} recorded at ${where(pool?.host ?? pool?.name ?? 'no pool', v.id)}`
  })
  const promised = pools.items.reduce((sum, p) => sum + p.promised_bytes, 0)
  return [...shared, ...local, ...records, `${promised} bytes promised`].toSorted().join(', ')
}

/** Mistakes of ours that a daemon wrote into its log. */
function unforeseen(from: Map<number, number>): string[] {
  return HOSTS.flatMap((h) =>
    host.logSince(h, from.get(h) ?? 0).flatMap((line) => {
      if (!line.includes('"level":"error"')) return []
      const { err, msg } = JSON.parse(line) as { err?: { message?: string; type?: string }; msg?: string }
      // A store that is away is no mistake of ours.
      return err?.type === 'StoreError' ? [] : [`${host.nameOf(h)} said: ${msg ?? ''}: ${err?.message ?? ''}`]
    }),
  )
}

export async function runCell(cell: Cell, say: (line: string) => void): Promise<Result> {
  host.letGo()
  const isFilled = cell.disks === 'local'
  const roles = await makeReady(cell.disks)
  const { source, target, boot } = roles
  const before = {
    n: await count(WATCHER),
    volumes: await volumes(source),
    logs: new Map(HOSTS.map((h) => [h as number, host.logLength(h)])),
  }
  const two = new host.TwoRun()
  const wrong: string[] = []
  let meanwhile: string | undefined
  let heal: (() => Promise<void>) | undefined
  try {
    host.holdAt(cell.phase)
    const job = await api().call(endpoints.vms.migrate, {
      params: { vm: VM },
      body: {
        to: host.nameOf(target),
        mode: cell.mode,
        max_stall_ms: 60_000,
        ...(SLOWLY.includes(cell.phase) ? { bandwidth_mib_per_s: SLOW_MIB } : {}),
      },
    })
    if (!(await within(REACH_MS, () => host.standsAt(cell.phase), 5))) {
      wrong.push(`it never came to ${cell.phase}: ${words(await look(job.id))}`)
      host.letGo()
    }
    if (IN_THE_MIDDLE.includes(cell.phase)) await host.sleep(1_000)
    const begun = performance.now()
    const struck = await strike(cell, roles)
    host.letGo()
    heal = struck.heal
    let seen = await look(job.id)
    const settled = async (ms: number) => {
      const ok = async () => {
        seen = await look(job.id)
        if (!isQuiet(seen)) return false
        const on = await placedOn().catch(() => 0)
        if (leftovers(seen.vm?.status.state === 'running' ? on : undefined).length > 0) return false
        return (await volumes(on).catch(() => undefined)) === before.volumes
      }
      await within(ms, ok, 300)
    }
    let ms: number | undefined
    if (struck.lasts) {
      await settled(LASTS_MS)
      if (isQuiet(seen)) ms = performance.now() - begun
      else meanwhile = words(seen)
      await heal()
      heal = undefined
    }
    await settled(SETTLE_MS)
    ms ??= performance.now() - begun
    if (!isQuiet(seen)) wrong.push(`not settled: ${words(seen)}`)
    const on = await placedOn()
    const isRunning = seen.vm?.status.state === 'running'
    await within(15_000, () => leftovers(isRunning ? on : undefined).length === 0 && folders(on).length === 0)
    wrong.push(...leftovers(isRunning ? on : undefined), ...folders(on))
    const now = await volumes(on)
    if (now !== before.volumes) wrong.push(`volumes: ${now}; before: ${before.volumes}`)
    // A VM that ended is started by us, to look at its disk.
    if (seen.vm?.status.state === 'stopped') {
      const why = await api()
        .call(endpoints.vms.start, { params: { vm: VM } })
        .then((start) => api().wait(start, { signal: AbortSignal.timeout(60_000) }))
        .then(
          (done) => (done.state === 'done' ? undefined : (done.fault?.detail ?? '')),
          (error: Error) => error.message,
        )
      if (why !== undefined) wrong.push(`it can't be started: ${why}`)
    }
    const there = await within(
      90_000,
      async () =>
        (await vm().catch(() => undefined))?.status.agent === 'connected' && bootId(WATCHER).catch(() => undefined),
    )
    if (there === undefined) wrong.push('the guest does not answer')
    const guest = there === undefined ? undefined : await lookAt(WATCHER, boot, isFilled)
    wrong.push(...(guest?.wrong ?? []), ...two.end(), ...unforeseen(before.logs))
    if (guest && guest.n < before.n) wrong.push(`the disk is back at count ${guest.n}, it was at ${before.n}`)
    const fault = seen.job?.fault
    const said = fault ? `${fault.code}: ${fault.detail}` : (seen.job?.state ?? '')
    if (fault?.code === 'internal') wrong.push('the job ended with a fault that was not foreseen')
    const lost = guest !== undefined && !guest.same
    const mayLose = ['source-qemu', 'target-qemu', 'source-host', 'target-host'].includes(cell.fault)
    if (lost && !mayLose) wrong.push('the guest lost its memory')
    const kept = on === target ? 'moved' : 'stayed'
    const outcome =
      wrong.length > 0
        ? 'FAILED'
        : lost
          ? isRunning
            ? 'restarted'
            : 'stopped'
          : meanwhile !== undefined
            ? 'decision'
            : kept
    for (const line of wrong) say(`    ${line}`)
    return {
      ...cell,
      outcome,
      job: said,
      ms: Math.round(ms),
      ...(meanwhile === undefined ? {} : { meanwhile }),
      wrong,
      at: new Date().toISOString(),
    }
  } finally {
    two.end()
    host.letGo()
    await heal?.().catch(() => undefined)
  }
}

/** Before the first, and after a case that failed: every host is there, nothing is cut, and one VM. */
export async function prepare(): Promise<void> {
  host.letGo()
  if (!(await host.lab('status').catch(() => ''))) {
    await host.lab('up', '--hosts', '3')
    await host.cli(1, 'image', 'build', 'tiny')
    await host.cli(1, 'pool', 'create', 'common', host.sharedDir, '--shared')
    await host.cli(1, 'network', 'create', 'lan', '--kind', 'bridge', '--bridge', 'lan0')
  }
  await host.lab('heal')
  for (const h of HOSTS) await host.makeRoom(h)
  host.signalAll(host.etcds(), 'SIGCONT')
  await Promise.all(HOSTS.map((h) => host.startDaemon(h)))
  const up = await within(120_000, async () =>
    (
      await api()
        .call(endpoints.cluster.get)
        .catch(() => undefined)
    )?.hosts.every((h) => h.state === 'up'),
  )
  if (!up) throw new Error('the hosts of the lab do not come together')
}

/** A VM of its own for each case that finds none: what a failed one left is taken away. */
export async function freshVm(disks: Disks): Promise<void> {
  const stop = await api()
    .call(endpoints.vms.delete, { params: { vm: VM }, query: { force: true } })
    .catch(() => undefined)
  if (stop)
    await api()
      .wait(stop, { signal: AbortSignal.timeout(90_000) })
      .catch(() => undefined)
  const argv = [
    'vm',
    'create',
    VM,
    '--image',
    'tiny',
    '--network',
    'lan',
    '--host',
    host.nameOf(1),
    '--disk',
    '64M',
    ...(disks === 'shared' ? ['--pool', 'common'] : []),
  ]
  await host.cli(WATCHER, ...argv, '--memory', '96M', '--start')
}
