/** A whole HTTP layer over a store in memory and services that only remember how they were called. */
import { randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Endpoint } from '@wadah/api/endpoint'
import { allEndpoints } from '@wadah/api/endpoints/all'
import type { Job } from '@wadah/api/schema/job'
import type { Services } from '@wadah/cluster/services'
import { CachedView } from '@wadah/store/cache'
import { type Clock, systemClock } from '@wadah/store/clock'
import type { Change, Store } from '@wadah/store/store'
import { openMemoryStore } from '@wadah/store/testing/memory'
import type { InjectOptions, LightMyRequestResponse } from 'fastify'
import { onTestFinished } from 'vitest'
import { type ListenOptions, type Running, startServer } from '../../src/http/listen.ts'
import { createLog } from '../../src/http/log.ts'
import { type Built, buildServer, type ServerOptions } from '../../src/http/server.ts'

export const JOB: Job = {
  id: 'job-aaaaaaaaaa',
  kind: 'vm.start',
  project: 'default',
  subject: 'root',
  state: 'running',
  target: { kind: 'vm', id: 'vm-aaaaaaaaaa' },
  percent: 0,
  steps: [],
  created_at: '2026-01-01T00:00:00.000Z',
}

export type Call = { name: string; args: unknown[] }
export type Overrides = { [name: string]: (...args: never[]) => unknown }

/** Every method answers something plausible, and remembers its call under `vms.get`, `jobs.wait`, … */
export function fakeServices(overrides: Overrides = {}): { services: Services; calls: Call[] } {
  const calls: Call[] = []
  const jobMethods =
    /^(warm|unwarm|create|delete|start|stop|stopGuests|shutdown|clone|migrate|drain|undrain|revert|build|.*Volume)$/
  const group = (service: string) =>
    new Proxy(
      {},
      {
        get: (_, method: string) => {
          const name = `${service}.${method}`
          return (...args: unknown[]) => {
            calls.push({ name, args })
            const own = overrides[name]
            if (own) return own(...(args as never[]))
            if (name === 'jobs.subscribe') return () => undefined
            if (service === 'jobs' && method !== 'list' && method !== 'log') return JOB
            if (/^transfers\.(export|download)/.test(name)) return pieces('content')
            if (/^transfers\.(importFile|uploadVolume)$/.test(name)) return drain(args.find(isIterable)).then(() => JOB)
            if (service === 'transfers') return Promise.resolve(JOB)
            if (method === 'checkConsole') return 'vm-aaaaaaaaaa'
            if (name === 'metrics.text') return Promise.resolve('# TYPE up gauge\nup 1\n')
            if (method === 'readFile' || method === 'screenshot') return pieces('content')
            if (method.startsWith('list') || method === 'recipes') return method === 'recipes' ? [] : { items: [] }
            if (/^(writeFile|upload)$/.test(method)) return drain(args.find(isIterable))
            if (/^(networks|firewallGroups|rules)\.delete$|deletePool|^cluster\.remove$/.test(name))
              return Promise.resolve()
            if (!/^(networks|firewallGroups|rules)/.test(name) && method !== 'getVolume' && jobMethods.test(method))
              return Promise.resolve(JOB)
            return { id: `x-${method}`, generation: 3 }
          }
        },
      },
    )
  const names = [
    'vms',
    'snapshots',
    'storage',
    'images',
    'warm',
    'transfers',
    'networks',
    'firewallGroups',
    'jobs',
    'host',
    'cluster',
    'metrics',
    'rules',
  ] as const
  return { services: Object.fromEntries(names.map((n) => [n, group(n)])) as unknown as Services, calls }
}

const isIterable = (value: unknown) => typeof value === 'object' && value !== null && Symbol.asyncIterator in value

async function drain(data: unknown): Promise<void> {
  for await (const _ of data as AsyncIterable<Uint8Array>);
}

export async function* pieces(...texts: string[]): AsyncGenerator<Uint8Array> {
  for (const text of texts) yield Buffer.from(text)
}

/** Kinds of the tests: `vm` is a resource, others are not. */
export function mapEvent(change: Change) {
  if (!['vm', 'job'].includes(change.kind)) return undefined
  return { resource: change.kind, resource_id: change.id, change: change.type }
}

export type TestServer = Built & {
  store: Store
  view: CachedView
  calls: Call[]
  directory: string
  logged: string[]
  /** A token's `Authorization` header. */
  full: string
  read: string
  ask(method: string, path: string, options?: InjectOptions): Promise<LightMyRequestResponse>
}

type TestOptions = { overrides?: Overrides; clock?: Clock; options?: Partial<ServerOptions>; level?: string }

async function prepare({ overrides, clock = systemClock, options, level = 'silent' }: TestOptions) {
  const directory = await mkdtemp(join(tmpdir(), 'wadah-http-'))
  const store = openMemoryStore({ clock })
  const view = await CachedView.open(store, { clock })
  const { services, calls } = fakeServices(overrides)
  const logged: string[] = []
  const server: ServerOptions = {
    services,
    store,
    view,
    mapEvent,
    clock,
    random: randomBytes,
    log: createLog({ level, destination: { write: (line: string) => void logged.push(line) } }),
    version: '0.0.0-test',
    auditFile: join(directory, 'audit.log'),
    backup: () => pieces('a copy'),
    ...options,
  }
  const clean = async () => {
    await view.close()
    await store.close()
    await rm(directory, { recursive: true, force: true })
  }
  return { directory, store, view, calls, logged, server, clean }
}

const ROOT = { kind: 'socket', id: 'root', name: 'root', scope: 'full' } as const

async function tokens({ access }: Built) {
  const full = await access.createToken(ROOT, { name: 'full', scope: 'full' })
  const read = await access.createToken(ROOT, { name: 'read', scope: 'read' })
  return { full: `Bearer ${full.secret}`, read: `Bearer ${read.secret}` }
}

/** Without sockets: asked by `inject`. Ends by itself with the test. */
export async function testServer(o: TestOptions = {}): Promise<TestServer> {
  const { server, clean, ...rest } = await prepare(o)
  const built = await buildServer(server)
  onTestFinished(async () => {
    await built.app.close()
    await built.audit.close()
    await clean()
  })
  const given = await tokens(built)
  return {
    ...rest,
    ...built,
    ...given,
    ask: (method, path, options = {}) =>
      built.app.inject({
        method: method as 'GET',
        url: path,
        ...options,
        headers: { host: 'localhost', authorization: given.full, ...options.headers },
      }),
  }
}

export type LiveServer = Omit<TestServer, 'ask'> & Running & { socketPath: string }

/** With real sockets: HTTPS on a free loopback port and a UNIX socket. */
export async function liveServer(o: TestOptions & { listen?: Partial<ListenOptions> } = {}): Promise<LiveServer> {
  const { server, clean, ...rest } = await prepare(o)
  const socketPath = join(rest.directory, 'wadah.sock')
  const running = await startServer({
    ...server,
    listen: {
      host: '127.0.0.1',
      port: 0,
      tlsDirectory: join(rest.directory, 'tls'),
      socket: { path: socketPath, group: 'no-such-group' },
      ...o.listen,
    },
  }).catch(async (error: unknown) => {
    await clean()
    throw error
  })
  onTestFinished(async () => {
    await running.stop(200)
    await clean()
  })
  const given = await tokens(running)
  return Object.assign(Object.create(running) as Running, { ...rest, ...given, socketPath })
}

/** A path of the endpoint with its parameters filled in. */
export function examplePath(path: string): string {
  return path
    .replace('{job}', 'job-aaaaaaaaaa')
    .replace('{file}', 'kernel')
    .replaceAll(/\{\w+\}/g, 'web')
}

export const BODIES: Record<string, unknown> = {
  'vms.create': { name: 'web' },
  'vms.edit': { cpus: 2 },
  'vms.clone': { name: 'web2' },
  'vms.migrate': { to: 'host2' },
  'cluster.edit': { maintenance: true },
  'cluster.set': { plain_networks: ['10.9.0.0/24'] },
  'cluster.token': {},
  'vms.exec': { argv: ['/bin/true'] },
  'vms.console': { kind: 'serial' },
  'images.build': { recipe: 'web-server' },
  'images.createKernel': { name: 'tiny' },
  'volumes.resize': { size_mib: 64 },
  'images.createIso': { name: 'debian' },
  'vms.insert': { image: 'debian' },
  'images.import': { name: 'cloud', url: 'https://example.net/disk.qcow2' },
  'images.fromVm': { name: 'golden', vm: 'web' },
  'volumes.convert': { format: 'raw' },
  'volumes.move': { pool: 'fast' },
  'pools.create': { name: 'fast', path: '/srv/fast' },
  'pools.edit': { overcommit: 3 },
  'volumes.create': { name: 'data', size_mib: 10 },
  'volumes.clone': { name: 'data2' },
  'networks.create': { name: 'lan', kind: 'nat' },
  'firewallGroups.create': { name: 'web' },
  'firewallGroups.edit': { rules: [] },
  'rules.create': { name: 'spread', kind: 'apart', selector: 'role=web' },
  'tokens.create': { name: 'robot', scope: 'read' },
  'access.setup': { code: 'x', user: 'ana', password: 'long enough' },
  'access.login': { user: 'ana', password: 'x' },
}
export const QUERIES: Record<string, string> = {
  'vms.getFile': '?path=/etc/hosts',
  'vms.putFile': '?path=/tmp/x',
  'images.importFile': '?name=cloud',
  'images.export': '?format=qcow2',
  'volumes.upload': '?name=data',
  'volumes.download': '?format=qcow2',
}
export const every: readonly Endpoint[] = allEndpoints
