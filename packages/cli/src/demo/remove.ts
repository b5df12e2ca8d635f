/** Takes the demo away through the API; what is left after that goes by force. */
import { readdir, readFile, rm } from 'node:fs/promises'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { endpoints } from '@wadah/api/endpoints/all'
import { fail, toFault } from '@wadah/api/fault'
import type { Job } from '@wadah/api/schema/job'
import type { Network } from '@wadah/api/schema/network'
import type { Image } from '@wadah/api/schema/storage'
import type { Cli } from '../cli.ts'
import { allVms } from '../commands/down.ts'
import { follow, hasEnded } from '../jobs/follow.ts'
import { type Instance, instanceOf } from '../local/instance.ts'
import { type Api, listAll } from '../net/api.ts'
import { runJob, type Work } from './ensure.ts'

/** Jobs are cancelled, VMs stopped and deleted, then images and networks. Returns what did not work. */
export async function removeThroughApi(cli: Cli, api: Api): Promise<string[]> {
  const signal = AbortSignal.timeout(180_000)
  const work: Work = { cli, api, signal, onProgress: () => {} }
  const problems: string[] = []
  const attempt = async (what: string, doIt: () => Promise<unknown>) => {
    try {
      await doIt()
    } catch (error) {
      const fault = toFault(error)
      if (fault.code !== 'not_found') problems.push(`${what}: ${fault.detail}`)
    }
  }
  const running = (
    await listAll<Job>((cursor) => api.call(endpoints.jobs.list, { query: { cursor, limit: 1000 }, signal }))
  ).filter((j) => !hasEnded(j))
  await Promise.all(
    running.map((job) =>
      attempt(`${job.kind} ${job.id}`, async () => {
        // Past its pivot a job only goes forward; then its end is waited for.
        const now = await api.call(endpoints.jobs.cancel, { params: { job: job.id }, signal }).catch(() => job)
        await follow(cli, api, now, { silent: true, signal })
      }),
    ),
  )
  const vms = await allVms(api)
  await Promise.all(
    vms.map((vm) =>
      attempt(vm.name, () =>
        runJob(work, api.call(endpoints.vms.delete, { params: { vm: vm.id }, query: { force: true }, signal })),
      ),
    ),
  )
  const images = await listAll<Image>((cursor) =>
    api.call(endpoints.images.list, { query: { cursor, limit: 1000 }, signal }),
  )
  // One after the other, the youngest first: an image may stand on an older one.
  for (const image of images.sort((a, b) => b.created_at.localeCompare(a.created_at))) {
    await attempt(image.name, () =>
      runJob(work, api.call(endpoints.images.delete, { params: { image: image.id }, signal })),
    )
  }
  const networks = await listAll<Network>((cursor) =>
    api.call(endpoints.networks.list, { query: { cursor, limit: 1000 }, signal }),
  )
  for (const network of networks.filter((n) => n.name !== 'default')) {
    await attempt(network.name, () => api.call(endpoints.networks.delete, { params: { network: network.id }, signal }))
  }
  return problems
}

/** Processes that still use the instance's folders: `pid name` each. */
export async function survivors(instance: Instance): Promise<string[]> {
  const found: string[] = []
  for (const pid of (await readdir('/proc')).filter((n) => /^\d+$/.test(n) && Number(n) !== process.pid)) {
    const argv = (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).split('\0')
    const program = argv[0]?.replace(/^.*\//, '') ?? ''
    if (!/^(qemu-|dnsmasq|swtpm|mmdebstrap|node)/.test(program)) continue
    if (argv.some((a) => a.includes(`${instance.data}/`) || a.includes(`${instance.run}/`)))
      found.push(`${pid} ${program}`)
  }
  return found
}

/** Removes the folders, once nothing uses them; refuses to touch one that is not a demo's. */
export async function removeFolders(cli: Cli, instance: Instance): Promise<void> {
  const left = await survivors(instance)
  if (left.length > 0) {
    throw fail('in_use', cli.t('demo.survivors', { list: left.join(', '), data: instance.data }), {
      remedy: `end them, then: wadah demo down`,
      effect: 'partial',
    })
  }
  const ours = existsSync(join(instance.data, 'demo.json'))
  const usual = instanceOf(instance.name, { uid: process.getuid?.() ?? 0, env: cli.io.env })
  for (const folder of [instance.run, instance.data]) {
    if (!existsSync(folder)) continue
    if (!ours && folder !== usual.run && folder !== usual.data) {
      throw fail('wrong_state', `${folder} does not look like a demo's folder, so it is left as it is`, {
        effect: 'partial',
      })
    }
    await rm(folder, { recursive: true, force: true })
  }
}
