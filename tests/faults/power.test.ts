/**
 * Power is lost: what was written and not flushed is gone, in part or in whole. A real daemon's work is recorded call by call; from that
 * the states are made that the disk may be in at any moment, and a real daemon opens each of them.
 */
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { endpoints } from '@wadah/api/endpoints/all'
import type { Job } from '@wadah/api/schema/job'
import { Daemon, purgeDead, until } from '../kit/daemon.ts'
import { Disk, random } from '../kit/power.ts'
import { readTrace, straceWords } from '../kit/trace.ts'

const { vms, volumes, images } = endpoints
/** What holds from an answer on, until the next request that changes it is sent. */
type Seen = {
  vms: Record<string, { description: string; disks: string[] }>
  volumes: Record<string, { file: string }>
  images: string[]
}
type Step = { what: string; sent: number; answered: number; before: Seen; after: Seen }

let d: Daemon
let disk: Disk
let dir: string
const steps: Step[] = []
const now = () => (performance.timeOrigin + performance.now()) / 1000

async function look(): Promise<Seen> {
  const [v, w, i] = [await d.api.call(vms.list), await d.api.call(volumes.list), await d.api.call(images.list)]
  return {
    vms: Object.fromEntries(
      v.items.map((vm) => [vm.id, { description: vm.description, disks: vm.spec.disks.map((k) => k.volume) }]),
    ),
    volumes: Object.fromEntries(w.items.map((o) => [o.id, { file: `${o.id}.${o.format}` }])),
    images: i.items.map((image) => image.id),
  }
}

/** Gone with the power, as QEMU and dnsmasq are. */
function endChildren(): void {
  for (const name of readdirSync('/proc').filter((n) => /^\d+$/.test(n))) {
    try {
      const argv = readFileSync(`/proc/${name}/cmdline`, 'utf8').split('\0')
      if (argv[0]?.endsWith('dnsmasq') && argv.some((w) => w.startsWith(`--conf-file=${d.data}/`)))
        process.kill(Number(name), 'SIGKILL')
    } catch {
      // It ended meanwhile.
    }
  }
}

beforeAll(async () => {
  purgeDead()
  dir = mkdtempSync(join(tmpdir(), 'wadah-power-'))
  d = new Daemon()
  const trace = join(dir, 'trace')
  const begun = now()
  await d.start(straceWords(trace))
  let before: Seen = await look()
  steps.push({
    what: 'the first start',
    sent: begun,
    answered: now(),
    before: { vms: {}, volumes: {}, images: [] },
    after: before,
  })
  const step = async (what: string, work: () => Promise<unknown>) => {
    const sent = now()
    const job = (await work()) as Job | undefined
    if (job && typeof job === 'object' && 'steps' in job) await d.done(job)
    const answered = now()
    const after = await look()
    steps.push({ what, sent, answered, before, after })
    before = after
  }
  const made = { image: undefined, nics: [], disk_mib: 1 }
  const body = (name: string, more: object = {}): any => ({ ...made, name, ...more })
  await step('vm create', () => d.api.call(vms.create, { body: body('one', { disks: [{ size_mib: 2 }] }) }))
  await step('volume create', () => d.api.call(volumes.create, { body: { name: 'v', size_mib: 1, format: 'raw' } }))
  const content = Buffer.alloc(1024 * 1024, 'content of a disk. ')
  await step('volume upload', () =>
    d.api.call(volumes.upload, { query: { name: 'up', format: 'raw' }, data: [content] as any }),
  )
  await step('full clone', () =>
    d.api.call(volumes.clone, { params: { volume: 'up' }, body: { name: 'full', clone: 'full' } }),
  )
  await step('linked clone', () =>
    d.api.call(volumes.clone, { params: { volume: 'up' }, body: { name: 'linked', clone: 'linked' } }),
  )
  await step('vm edit', () =>
    d.api.call(vms.edit, { params: { vm: 'one' }, body: { description: 'edited', add_disks: [{ size_mib: 1 }] } }),
  )
  await step('vm clone', () => d.api.call(vms.clone, { params: { vm: 'one' }, body: { name: 'two' } }))
  await step('image of a VM', () => d.api.call(images.fromVm, { body: { name: 'golden', vm: 'two' } }))
  await step('image import', () =>
    d.api.call(images.importFile, { query: { name: 'cloud', format: 'raw' }, data: [content] as any }),
  )
  await step('volume resize', () => d.api.call(volumes.resize, { params: { volume: 'v' }, body: { size_mib: 3 } }))
  await step('volume convert', () =>
    d.api.call(volumes.convert, { params: { volume: 'full' }, body: { format: 'raw' } }),
  )
  await step('volume delete', () => d.api.call(volumes.delete, { params: { volume: 'linked' } }))
  await step('vm delete', () => d.api.call(vms.delete, { params: { vm: 'two' } }))
  await step('image delete', () => d.api.call(images.delete, { params: { image: 'cloud' } }))
  await d.kill('SIGKILL')
  endChildren()
  disk = new Disk(d.data, readTrace(trace, d.data))
}, 180_000)
afterAll(async () => {
  await d.purge()
  rmSync(dir, { recursive: true, force: true })
})

const file = (seen: Seen, id: string) => `${d.data}/pools/default/wadah/volumes/${seen.volumes[id]?.file}`

/** What is wrong with the state that the daemon finds, or nothing. */
async function judge(step: Step, when: number): Promise<string[]> {
  await d.start()
  try {
    await until(
      'every job to end',
      async () => {
        const { items } = await d.api.call(endpoints.jobs.list, { query: { limit: 1000 } })
        return items.every((j) => ['done', 'failed', 'cancelled'].includes(j.state))
      },
      20_000,
    )
    const found = await look()
    const wrong: string[] = []
    // In the middle of a step what it changes may be so or so.
    const { before } = step
    const after = when >= step.answered ? step.after : undefined
    const holds = after ?? before
    const same = (a: unknown, b: unknown) => JSON.stringify(a) === JSON.stringify(b)
    for (const [id, vm] of Object.entries(holds.vms)) {
      if (!after && !same(vm, step.after.vms[id])) continue
      if (!same(found.vms[id], vm))
        wrong.push(`VM ${id} is ${JSON.stringify(found.vms[id])}, not ${JSON.stringify(vm)}`)
    }
    for (const id of Object.keys(holds.volumes)) {
      if (!after && !same(holds.volumes[id], step.after.volumes[id])) continue
      if (!found.volumes[id]) wrong.push(`volume ${id} is lost`)
      // What it holds is what it held when its making was acknowledged.
      else if (after || step.what !== 'volume resize') {
        const path = file(holds, id)
        const was = disk.content(path, when)
        if (was && !readFileSync(path).equals(was)) wrong.push(`volume ${id} has other content`)
      }
    }
    for (const id of holds.images)
      if ((after || step.after.images.includes(id)) && !found.images.includes(id)) wrong.push(`image ${id} is lost`)
    // And nothing comes back, or is left over.
    if (after) {
      for (const [what, list, there] of [
        ['VM', after.vms, found.vms],
        ['volume', after.volumes, found.volumes],
      ] as const)
        for (const id of Object.keys(there)) if (!(id in list)) wrong.push(`${what} ${id} came back`)
    }
    const files = () => d.traces().volumes.sort()
    const recorded = Object.values((await look()).volumes)
      .map((v) => v.file)
      .sort()
    if (!same(files(), recorded)) wrong.push(`files ${files().join(' ')} for volumes ${recorded.join(' ')}`)
    return wrong
  } finally {
    await d.kill('SIGKILL')
    endChildren()
  }
}

test('the model gives back what the disk has when nothing is lost', () => {
  const last = steps.at(-1)?.after
  for (const id of Object.keys(last?.volumes ?? {})) {
    const path = file(last as Seen, id)
    expect(disk.content(path, Number.POSITIVE_INFINITY)?.equals(readFileSync(path))).toBe(true)
  }
  expect(
    disk.content(`${d.data}/store.db-wal`, Number.POSITIVE_INFINITY)?.equals(readFileSync(`${d.data}/store.db-wal`)),
  ).toBe(true)
})

test('whatever of the unflushed is lost, the store opens, agrees with the disk, and has all that was acknowledged', async () => {
  const seed = Number(process.env['WADAH_TEST_SEED'] ?? 1)
  const chance = random(seed)
  const keep = ['nothing', 'any', 'prefix'] as const
  const wrong: string[] = []
  for (const [n, step] of steps.entries()) {
    const inside = step.sent + chance() * (step.answered - step.sent)
    // Each takes a start of the daemon: every answer, and every fourth step in its middle.
    for (const [i, when] of (n % 4 === seed % 4 ? [step.answered, inside] : [step.answered]).entries()) {
      const how = i === 0 ? 'nothing' : (keep[Math.floor(n / 3 + seed) % 3] ?? 'any')
      disk.write(when, how, chance)
      const name = `${step.what}, ${when === inside ? 'in its middle' : 'answered'}, kept: ${how}, seed ${seed}`
      const found = await judge(step, when).catch((error: unknown) => [(error as Error).message.slice(0, 600)])
      wrong.push(...found.map((w) => `${name}: ${w}`))
    }
  }
  expect(wrong).toEqual([])
}, 240_000)
