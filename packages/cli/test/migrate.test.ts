import type { MovePlan } from '@wadah/api/schema/migration'
import { afterEach, describe, expect, it } from 'vitest'
import { type FakeDaemon, fakeDaemon, wadah } from './support/fake.ts'

let daemon: FakeDaemon
afterEach(async () => await daemon.close())
const start = async (plan: MovePlan) => {
  daemon = await fakeDaemon({ 'GET /v1/vms/web/migrate': () => ({ json: plan }) })
  return { WADAH_SOCKET: daemon.socket }
}

describe('vm migrate --dry-run', () => {
  const plan: MovePlan = {
    vm: 'web',
    from: 'host1',
    to: 'host2',
    live: true,
    mode: 'auto',
    forecast: { how: 'precopy', converges: true, total_ms: 13_185, stall_ms: 45, bytes: 2 ** 28, disk_bytes: 2 ** 30 },
    disks: [{ name: 'root', from: 'default', to: 'fast', bytes: 2 ** 30 }],
    blockers: [],
  }

  it('says where it would go and what that would cost, and asks for nothing to be done', async () => {
    const env = await start(plan)
    const r = await wadah(['vm', 'migrate', 'web', '--dry-run', '--to', 'host2', '--max-stall-ms', '80'], { env })
    expect(r.code).toBe(0)
    expect(r.stdout).toMatch(/host +host1 → host2/)
    expect(r.stdout).toMatch(/mode +auto → precopy/)
    expect(r.stdout).toMatch(/disk root +default → fast, 1 GiB/)
    expect(r.stdout).toMatch(/forecast +13\.2 s, stall 45 ms, 1\.3 GiB to send/)
    expect(daemon.seen).toHaveLength(1)
    expect(Object.fromEntries(daemon.seen[0]!.query)).toEqual({ to: 'host2', max_stall_ms: '80' })
    expect((await wadah(['--lang', 'id', 'vm', 'migrate', 'web', '--dry-run'], { env })).stdout).toContain(
      'berhenti 45 ms',
    )
    expect(JSON.parse((await wadah(['vm', 'migrate', 'web', '--dry-run', '--json'], { env })).stdout)).toEqual(plan)
  })

  it('fails where the move would be refused, with the words of the refusal', async () => {
    const { to: _, forecast: _f, disks: _d, ...rest } = plan
    const blockers = [{ code: 'no_room', why: 'No other host can take "web".', remedy: 'wadah host list' }]
    const r = await wadah(['vm', 'migrate', 'web', '--dry-run'], { env: await start({ ...rest, blockers }) })
    expect(r).toMatchObject({ code: 1, stdout: '' })
    expect(r.stderr).toContain('! No other host can take "web". (wadah host list)')
  })

  it('warns of a guest that writes too fast', async () => {
    const forecast = { ...plan.forecast!, converges: false, why: 'it writes 200 MiB/s, the link takes 100' }
    const r = await wadah(['vm', 'migrate', 'web', '--dry-run'], { env: await start({ ...plan, forecast }) })
    expect(r.stderr).toContain('! it writes 200 MiB/s')
  })
})
