/**
 * Steps of the demo that look before they act: run again after a Ctrl-C, a crash or a reboot they do only what is missing, and
 * a job that still runs is waited for, not started a second time.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { endpoints } from '@wadah/api/endpoints/all'
import { toFault, WadahError, type FaultCode } from '@wadah/api/fault'
import type { Job } from '@wadah/api/schema/job'
import type { Network } from '@wadah/api/schema/network'
import type { Image } from '@wadah/api/schema/storage'
import type { Vm, VmCreate } from '@wadah/api/schema/vm'
import type { Cli } from '../cli.ts'
import { follow, hasEnded, jobFault } from '../jobs/follow.ts'
import type { Instance } from '../local/instance.ts'
import { freePort } from '../local/ports.ts'
import type { Api } from '../net/api.ts'
import { DEMO_MEMORY_MIB, DEMO_NETWORK, type DemoServer, type DemoState, publishedAt } from './plan.ts'
import { saveState } from './state.ts'

export type Work = { cli: Cli; api: Api; signal: AbortSignal; onProgress: (job: Job) => void }

/** The answer, or undefined for `not_found`. */
export async function orMissing<T>(call: Promise<T>): Promise<T | undefined> {
  try {
    return await call
  } catch (error) {
    if (error instanceof WadahError && error.fault.code === 'not_found') return undefined
    throw error
  }
}

/** Starts a job and waits for its end; throws its fault. */
export async function runJob(work: Work, start: Promise<Job>): Promise<Job> {
  const job = await follow(work.cli, work.api, await start, {
    silent: true,
    signal: work.signal,
    onJob: work.onProgress,
  })
  const fault = jobFault(job)
  if (fault) throw new WadahError(fault)
  return job
}

/** A job that is already at work on something of this name. */
async function runningJob(work: Work, name: string): Promise<Job | undefined> {
  const { items } = await work.api.call(endpoints.jobs.list, { query: { limit: 200 }, signal: work.signal })
  return items.find((j) => !hasEnded(j) && (j.target.name === name || j.target.id === name))
}

/** Gets a thing, or makes it; a job of an earlier run that is about it is let finish first. */
async function ensure<T>(work: Work, name: string, get: () => Promise<T>, make: () => Promise<Job>): Promise<T> {
  for (let attempt = 0; ; attempt += 1) {
    const running = await runningJob(work, name)
    if (running)
      await follow(work.cli, work.api, running, { silent: true, signal: work.signal, onJob: work.onProgress })
    const there = await orMissing(get())
    if (there) return there
    try {
      await runJob(work, make())
    } catch (error) {
      const again: FaultCode[] = ['busy', 'name_taken', 'conflict']
      if (attempt >= 5 || !again.includes(toFault(error).code)) throw error
      await delay(1000, undefined, { signal: work.signal })
    }
  }
}

/** A nat network where this machine can have one, otherwise `user`; `why` says why not. */
export async function ensureNetwork(work: Work): Promise<{ network: Network; why?: string }> {
  const { api, signal } = work
  const params = { network: DEMO_NETWORK }
  const there = await orMissing(api.call(endpoints.networks.get, { params, signal }))
  if (there && (there.kind === 'user' || there.state === 'up')) return { network: there }
  let why = there?.reason
  if (!there) {
    try {
      const made = await api.call(endpoints.networks.create, { body: { name: DEMO_NETWORK, kind: 'nat' }, signal })
      if (made.state === 'up') return { network: made }
      why = made.reason
    } catch (error) {
      const fault = toFault(error)
      if (!['host_lacks', 'forbidden', 'tool_failed', 'unavailable'].includes(fault.code)) throw error
      why = fault.detail
    }
  }
  // A nat network that cannot come up is of no use; one that VMs already use stays, and the refusal is shown.
  if (await orMissing(api.call(endpoints.networks.get, { params, signal }))) {
    await api.call(endpoints.networks.delete, { params, signal })
  }
  const network = await api.call(endpoints.networks.create, { body: { name: DEMO_NETWORK, kind: 'user' }, signal })
  return { network, why: why ?? 'unknown' }
}

/** In the pool that is named, or where images go. */
export async function ensureImage(work: Work, recipe: string, pool?: string): Promise<Image> {
  return await ensure(
    work,
    recipe,
    () => work.api.call(endpoints.images.get, { params: { image: recipe }, signal: work.signal }),
    () =>
      work.api.call(endpoints.images.build, {
        body: { recipe, ...(pool === undefined ? {} : { pool }) },
        signal: work.signal,
      }),
  )
}

/** Makes the VM, published on the first free port; a port that somebody takes in between costs another try. */
/** `place`: in a lab, where the port of this machine leads there by itself. */
export async function ensureVm(
  work: Work,
  instance: Instance,
  state: DemoState,
  server: DemoServer,
  place?: Pick<VmCreate, 'host' | 'pool'>,
): Promise<Vm> {
  const { api, signal } = work
  const own = (state.servers[server.name] ??= {})
  const get = () => api.call(endpoints.vms.get, { params: { vm: server.name }, signal })
  for (let from = server.firstPort; ; ) {
    if (own.port === undefined) {
      const others = Object.values(state.servers).flatMap((s) => (s.port === undefined ? [] : [s.port]))
      const port = await freePort(state.publish_address, from, others)
      if (port === undefined) throw new Error(`no free port from ${from} up on ${state.publish_address}`)
      own.port = port
      await saveState(instance, state)
    }
    const { port } = own
    try {
      const vm = await ensure(work, server.name, get, () =>
        api.call(endpoints.vms.create, {
          body: {
            name: server.name,
            description: `Demo: ${server.recipe}`,
            labels: { demo: server.service },
            image: server.recipe,
            cpus: 1,
            memory_mib: DEMO_MEMORY_MIB,
            nics: [
              {
                network: DEMO_NETWORK,
                publish: place ? [] : [{ address: state.publish_address, port, to: server.guestPort }],
              },
            ],
            ...place,
            ...(server.service === 'smb' ? { seed: state.credentials } : {}),
          },
          signal,
        }),
      )
      own.port = publishedAt(vm, server.guestPort)?.port ?? port
      await saveState(instance, state)
      return vm
    } catch (error) {
      if (toFault(error).code !== 'port_taken' || port > server.firstPort + 100) throw error
      delete own.port
      from = port + 1
    }
  }
}

/** Starts the VM unless it runs; what was noted at the start's request is where its time to service begins. */
export async function ensureRunning(
  work: Work,
  instance: Instance,
  state: DemoState,
  server: DemoServer,
): Promise<void> {
  const { api, signal, cli } = work
  const own = (state.servers[server.name] ??= {})
  const params = { vm: server.name }
  const running = await runningJob(work, server.name)
  if (running) await follow(cli, api, running, { silent: true, signal })
  const vm = await api.call(endpoints.vms.get, { params, signal })
  if (vm.status.state === 'running' || vm.status.state === 'starting') return
  if (vm.status.state === 'paused') {
    await api.call(endpoints.vms.resume, { params, signal })
    return
  }
  own.start_requested_ms = Math.round(cli.io.now())
  delete own.ready_ms
  await saveState(instance, state)
  await runJob(work, api.call(endpoints.vms.start, { params, signal }))
}
