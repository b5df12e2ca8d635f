/** Each server moves to the next host while people use it; what they saw of it stands beside what was measured. */
import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import type { VmMove } from '@wadah/api/schema/migration'
import { runJob, type Work } from './ensure.ts'
import { Client, type Used } from './clients.ts'
import type { LabState } from '../lab/plan.ts'
import { type DemoMove, type DemoServer, type DemoState, reachOf } from './plan.ts'

/** On a machine without hardware acceleration a guest writes while all of its RAM is copied once, and stands still for what it wrote. */
const MAX_STALL_MS = 5_000

/** @throws WadahError when it is refused, or breaks */
export async function showMove(work: Work, state: DemoState, lab: LabState, server: DemoServer): Promise<DemoMove> {
  const { api, signal } = work
  const reach = reachOf(state, server)
  if (!reach) throw fail('internal', `${server.name} has no port`)
  const client = await Client.begin(server.service, {
    ...reach,
    vm: server.name,
    credentials: state.credentials,
    api,
    signal,
  })
  let used: Used
  let move: VmMove
  try {
    const body = { to: await nextHost(work, lab, server), max_stall_ms: MAX_STALL_MS }
    const job = await runJob(work, api.call(endpoints.vms.migrate, { params: { vm: server.name }, body, signal }))
    move = job.result as VmMove
  } finally {
    used = await client.end()
  }
  return { ...move, client_errors: used.errors.length, client: { ...used, errors: used.errors.slice(0, 5) } }
}

/** In a ring, so that in the end they are spread as they were. */
async function nextHost({ api, signal }: Work, lab: LabState, server: DemoServer): Promise<string> {
  const [vm, cluster] = await Promise.all([
    api.call(endpoints.vms.get, { params: { vm: server.name }, signal }),
    api.call(endpoints.cluster.get, { signal }),
  ])
  const name = cluster.hosts.find((h) => h.id === vm.placement?.host)?.name
  const next = lab.hosts[(lab.hosts.findIndex((h) => h.name === name) + 1) % lab.hosts.length]
  if (!next) throw fail('internal', 'The lab has no hosts.')
  return next.name
}
