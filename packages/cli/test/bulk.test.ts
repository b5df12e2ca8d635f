/** One action on several VMs. */
import { afterEach, describe, expect, it } from 'vitest'
import { type FakeDaemon, fakeDaemon, problem, type Routes, wadah } from './support/fake.ts'
import { job, vm } from './support/samples.ts'

let daemon: FakeDaemon
afterEach(async () => await daemon.close())
const start = async (routes: Routes) => {
  daemon = await fakeDaemon(routes)
  return { WADAH_SOCKET: daemon.socket }
}
const state = (s: 'running' | 'stopped') => ({ state: s, since: '', pending_restart: [] })
const a = vm({ id: 'vm-aaaaaaaaaa', name: 'a', status: state('stopped') })
const b = vm({ id: 'vm-bbbbbbbbbb', name: 'b', status: state('stopped') })
const c = vm({ id: 'vm-cccccccccc', name: 'c', status: state('running') })
const byRef = (path: string) => [a, b, c].find((v) => [v.id, v.name].includes(path.split('/')[3] ?? ''))
const done = (path: string) =>
  ({ status: 202, json: job({ state: 'done', percent: 100, target: { kind: 'vm', id: byRef(path)!.id } }) }) as const
const base: Routes = {
  'GET /v1/vms': () => ({ json: { items: [a, b, c] } }),
  'GET /v1/vms/*': (r) => {
    const found = byRef(r.path)
    return found ? { json: found } : problem('not_found', 404, 'There is no such VM')
  },
}
const changes = () => daemon.seen.filter((s) => s.method !== 'GET').map((s) => `${s.method} ${s.path}`)

describe('several VMs', () => {
  it('chosen by labels; what is there already is left alone', async () => {
    const env = await start({ ...base, 'POST /v1/vms/*/start': (r) => done(r.path) })
    const r = await wadah(['vm', 'start', '--selector', 'role=web,env!=test'], { env })
    expect([r.code, r.stdout.split('\n').sort().slice(1)]).toEqual([0, ['a runs', 'b runs']])
    expect(r.stderr).toContain('c: nothing to do')
    expect(r.stderr).toContain('done: 2, nothing to do: 1, failed: 0')
    expect(daemon.seen[0]!.query.get('selector')).toBe('role=web,env!=test')
    expect(changes().sort()).toEqual(['POST /v1/vms/vm-aaaaaaaaaa/start', 'POST /v1/vms/vm-bbbbbbbbbb/start'])
  })
  it('one that fails keeps no other; the exit code is that of the failures', async () => {
    const env = await start({
      ...base,
      'POST /v1/vms/*/start': (r) =>
        r.path.includes('aaaa') ? problem('no_room', 507, 'no memory', { remedy: 'less' }) : done(r.path),
    })
    const r = await wadah(['vm', 'start', 'a', 'b', 'a'], { env })
    expect([r.code, r.stdout]).toEqual([8, 'b runs\n'])
    expect(r.stderr).toContain('a: not enough room: no memory')
    const j = await wadah(['vm', 'start', 'a', 'b', '--json'], { env })
    expect(JSON.parse(j.stdout).items).toMatchObject([
      { vm: 'a', outcome: 'failed', fault: { code: 'no_room' } },
      { vm: 'b', outcome: 'done' },
    ])
  })
  it('of different failures it is 1', async () => {
    const env = await start({
      ...base,
      'POST /v1/vms/*/start': (r) =>
        r.path.includes('aaaa') ? problem('no_room', 507, 'x') : problem('busy', 409, 'y'),
    })
    expect((await wadah(['vm', 'start', 'a', 'b'], { env })).code).toBe(1)
  })
  it('all that are named must be there before anything is done', async () => {
    const env = await start({ ...base, 'POST /v1/vms/*/start': (r) => done(r.path) })
    expect((await wadah(['vm', 'start', 'a', 'nosuch'], { env })).code).toBe(3)
    expect(changes()).toEqual([])
  })
  it('are not deleted or stopped unasked', async () => {
    const env = await start({
      ...base,
      'DELETE /v1/vms/*': (r) => done(r.path),
      'POST /v1/vms/*/stop': (r) => done(r.path),
    })
    for (const argv of [
      ['vm', 'delete', 'a', 'b'],
      ['vm', 'delete', '--selector', 'x'],
      ['vm', 'stop', '--selector', 'x'],
    ]) {
      const r = await wadah(argv, { env })
      expect([argv, r.code]).toEqual([argv, 2])
      expect(r.stderr).toContain('give --yes')
    }
    const no = await wadah(['vm', 'delete', 'a', 'b'], {
      env,
      tty: true,
      during: ({ stdin }) => void setTimeout(() => stdin.write('n\r'), 300),
    })
    expect(no.code).toBe(0)
    expect(changes()).toEqual([])
    expect((await wadah(['vm', 'delete', 'a', 'b', '--yes'], { env })).code).toBe(0)
    expect(changes().sort()).toEqual(['DELETE /v1/vms/vm-aaaaaaaaaa', 'DELETE /v1/vms/vm-bbbbbbbbbb'])
  })
  it('neither none nor both ways of naming', async () => {
    const env = await start(base)
    expect((await wadah(['vm', 'start'], { env })).code).toBe(2)
    expect((await wadah(['vm', 'start', 'a', '--selector', 'x'], { env })).code).toBe(2)
    expect(daemon.seen).toEqual([])
  })
  it('are not waited for with --no-wait', async () => {
    const env = await start({ ...base, 'POST /v1/vms/*/start': () => ({ status: 202, json: job() }) })
    const r = await wadah(['vm', 'start', 'a', 'b', '--no-wait', '--quiet'], { env })
    expect([r.code, r.stdout]).toEqual([0, 'job-aaaaaaaaaa\njob-aaaaaaaaaa\n'])
  })
})
