import { Duplex } from 'node:stream'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { AgentClient, connectAgent } from '@wadah/qmp/agent'
import type { AgentOptions } from '@wadah/qmp/agent-channel'
import { FakeAgent, type FakeAgentOptions, type Handler, type Handlers } from '@wadah/qmp/testing/fake-agent'
import { closing, collect, cutAt, failure } from './helpers.ts'

function agent(fake: FakeAgentOptions = {}, options: AgentOptions = {}): { guest: FakeAgent; agent: AgentClient } {
  const guest = closing(new FakeAgent(fake))
  return { guest, agent: closing(new AgentClient(guest.stream(), options)) }
}

const commands = (guest: FakeAgent) => guest.received.map(({ command }) => command)

describe('an agent that works', () => {
  it('is synchronized once, then asked', async () => {
    const { guest, agent: client } = agent()
    await client.ping()
    await client.ping()
    expect(commands(guest)).toEqual(['guest-sync-delimited', 'guest-ping', 'guest-ping'])
  })

  it('is reached over a UNIX socket', async () => {
    const guest = closing(await new FakeAgent().listen())
    await closing(await connectAgent({ path: guest.path })).ping()
  })

  it('tells about itself', async () => {
    const { agent: client } = agent()
    const info = await client.info()
    expect(info.version).toBe('7.2.22')
    expect(info.commands.has('guest-exec')).toBe(true)
    expect(await client.osInfo()).toMatchObject({ id: 'debian', version_id: '12', kernel_release: undefined })
    expect(await client.interfaces()).toEqual({
      interfaces: [
        { name: 'eth0', mac: '52:54:00:00:00:01', addresses: [{ address: '10.0.2.15', family: 4, prefix: 24 }] },
      ],
      omitted: 0,
    })
  })

  it('freezes and thaws', async () => {
    const { agent: client } = agent()
    expect(await client.freezeStatus()).toBe('thawed')
    expect(await client.freeze()).toBe(1)
    expect(await client.freezeStatus()).toBe('frozen')
    expect(await client.thaw()).toBe(1)
  })

  it('sets the clock in nanoseconds', async () => {
    const { guest, agent: client } = agent()
    await client.setTime(1_700_000_000_123)
    await client.setTime()
    expect(guest.received.slice(-2).map(({ args }) => args)).toEqual([{ time: 1_700_000_000_123_000_000 }, {}])
  })

  it('serves overlapping requests one after the other', async () => {
    const { guest, agent: client } = agent({ handlers: { 'guest-ping': [{ sleep_ms: 5 }, { return: {} }] } })
    await Promise.all([client.ping(), client.osInfo(), client.ping()])
    expect(commands(guest)).toEqual(['guest-sync-delimited', 'guest-ping', 'guest-get-osinfo', 'guest-ping'])
  })
})

describe('an agent that closed its end', () => {
  it('owes no answer: who asked is told at once, and the next is not held up', async () => {
    const { agent: client } = agent({ handlers: { 'guest-set-time': { stall: true } } })
    await client.ping()
    const asked = failure(client.setTime(0, { timeout_ms: 30_000 }))
    const next = client.ping({ timeout_ms: 5_000 })
    await new Promise(setImmediate)
    client.left()
    expect(await asked).toMatchObject({ kind: 'closed', command: 'guest-set-time', sent: true })
    await next
    // With nothing on the wire it is no news.
    client.left()
    await client.ping()
  })
})

describe('exec', () => {
  const programs = {
    '/bin/cat': ({ input, args, env }: { input: Buffer; args: string[]; env: string[] }) => ({
      polls: 2,
      exit_code: 3,
      stdout: input,
      stderr: [...args, ...env].join(' '),
    }),
    '/bin/killed': () => ({ signal: 9 }),
    '/bin/forever': () => ({ polls: Number.POSITIVE_INFINITY }),
  }

  it('passes input, arguments and environment, and brings back output and exit code', async () => {
    const { agent: client } = agent({ programs })
    const input = Buffer.from([0, 255, 10, 195])
    const result = await client.exec({ path: '/bin/cat', args: ['a b', '$x'], env: { LANG: 'C' }, input })
    expect(result).toMatchObject({ exit_code: 3, signal: undefined, stdout_truncated: false })
    expect(result.stdout.equals(input)).toBe(true)
    expect(result.stderr.toString()).toBe('a b $x LANG=C')
    expect(await client.exec({ path: '/bin/killed' })).toMatchObject({ exit_code: undefined, signal: 9 })
  })

  it('cuts output at the limit and says so', async () => {
    const { agent: client } = agent({ programs })
    const result = await client.exec({ path: '/bin/cat', input: Buffer.alloc(100), max_output_bytes: 10 })
    expect(result).toMatchObject({ stdout_truncated: true, stderr_truncated: false })
    expect(result.stdout.length).toBe(10)
  })

  it('names the process that still runs after a deadline or an abort', async () => {
    const { agent: client } = agent({ programs })
    const late = await failure(client.exec({ path: '/bin/forever', timeout_ms: 30 }))
    expect(late).toMatchObject({
      kind: 'timeout',
      sent: true,
      message: expect.stringMatching(/process \d+ in the guest/),
    })
    const signal = AbortSignal.timeout(20)
    const aborted = await failure(client.exec({ path: '/bin/forever', signal }))
    expect(aborted).toMatchObject({ kind: 'aborted', message: expect.stringContaining('may still run') })
    await client.ping()
  })

  it('leaves the channel to others while it waits', async () => {
    const { agent: client } = agent({ programs })
    const abort = new AbortController()
    const running = failure(client.exec({ path: '/bin/forever', signal: abort.signal }))
    for (let n = 0; n < 3; n += 1) await client.ping()
    abort.abort()
    await running
  })

  it('refuses what is too large, and passes on what the agent refuses', async () => {
    const { guest, agent: client } = agent({ programs })
    const large = await failure(client.exec({ path: '/bin/cat', input: Buffer.alloc(8 * 1024 * 1024 + 1) }))
    expect(large.kind).toBe('limit')
    expect(guest.received).toEqual([])
    expect(await failure(client.exec({ path: '/nope' }))).toMatchObject({
      kind: 'command-failed',
      class: 'GenericError',
    })
  })
})

describe('files', () => {
  it('arrive as they were sent, whatever their pieces', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.uint8Array({ maxLength: 40 }), { maxLength: 6 }),
        fc.integer({ min: 1, max: 30 }),
        async (pieces, chunk_bytes) => {
          const guest = new FakeAgent()
          const client = new AgentClient(guest.stream())
          const whole = Buffer.concat(pieces)
          expect(await client.putFile('/f', pieces, { chunk_bytes })).toBe(whole.length)
          const back = await collect(client.getFile('/f', { chunk_bytes }))
          expect(Buffer.concat(back).equals(whole)).toBe(true)
          expect(guest.handles.size).toBe(0)
          client.close()
          await guest.close()
        },
      ),
      { numRuns: 40 },
    )
  })

  it('goes on after a short write', async () => {
    const { guest, agent: client } = agent()
    const write = guest.handlers['guest-file-write'] as (call: { args: object }) => never
    guest.handlers['guest-file-write'] = (call) => {
      const first = Buffer.from(String(call.args['buf-b64']), 'base64').subarray(0, 3)
      return write({ ...call, args: { ...call.args, 'buf-b64': first.toString('base64') } })
    }
    expect(await client.putFile('/f', Buffer.from('0123456789'))).toBe(10)
    expect(guest.files.get('/f')?.toString()).toBe('0123456789')
  })

  it('refuses a file that grows while it is read', async () => {
    const { guest, agent: client } = agent()
    guest.files.set('/f', Buffer.alloc(100))
    guest.handlers['guest-file-read'] = {
      return: { count: 10, 'buf-b64': Buffer.alloc(10).toString('base64'), eof: false },
    }
    expect((await failure(collect(client.getFile('/f', { chunk_bytes: 10 })))).message).toContain(
      '100 bytes but 110 came',
    )
    expect(guest.handles.size).toBe(0)
  })

  it('stops where a file is longer than allowed, and closes it when the reader leaves early', async () => {
    const { guest, agent: client } = agent()
    guest.files.set('/f', Buffer.alloc(100))
    const all = () => collect(client.getFile('/f', { max_bytes: 50, chunk_bytes: 10 }))
    expect((await failure(all())).kind).toBe('limit')
    for await (const _ of client.getFile('/f', { chunk_bytes: 10 })) break
    expect(guest.handles.size).toBe(0)
  })

  it.each([
    ['more written than sent', 'guest-file-write', { count: 99, eof: false }],
    ['nothing written', 'guest-file-write', { count: 0, eof: false }],
    ['another size in the end', 'guest-file-seek', { position: 1, eof: false }],
    ['a size that is no number', 'guest-file-seek', { position: '4', eof: false }],
  ])('refuses %s, and closes the file', async (_, command, answer) => {
    const { guest, agent: client } = agent({ handlers: { [command]: { return: answer } } })
    expect((await failure(client.putFile('/f', Buffer.from('data')))).kind).toBe('protocol')
    expect(guest.handles.size).toBe(0)
  })

  it.each([
    ['a wrong count', { count: 100, 'buf-b64': 'AAAA', eof: true }],
    ['more than asked', { count: 3, 'buf-b64': Buffer.alloc(500).toString('base64'), eof: false }],
    ['no base64', { count: 3, 'buf-b64': '####', eof: true }],
    ['nothing for ever', { count: 0, 'buf-b64': '', eof: false }],
    ['less than its size', { count: 1, 'buf-b64': 'AA==', eof: true }],
  ])('refuses %s', async (_, answer) => {
    const { guest, agent: client } = agent({ handlers: { 'guest-file-read': { return: answer } } })
    guest.files.set('/f', Buffer.alloc(100))
    expect((await failure(collect(client.getFile('/f', { chunk_bytes: 100 })))).kind).toBe('protocol')
    expect(guest.handles.size).toBe(0)
  })
})

describe('shutdown', () => {
  it('takes silence for consent, an error for refusal', async () => {
    const { guest, agent: client } = agent()
    await client.shutdown('powerdown', { timeout_ms: 10 })
    expect(guest.received.at(-1)).toMatchObject({ command: 'guest-shutdown', args: { mode: 'powerdown' } })
    guest.handlers['guest-shutdown'] = { error: { class: 'GenericError', desc: 'no' } }
    expect((await failure(client.shutdown('reboot'))).kind).toBe('command-failed')
    guest.handlers['guest-shutdown'] = { drop: true }
    await client.shutdown('halt')
    expect((await failure(client.shutdown())).kind).toBe('closed')
  })

  it('does not take an agent that is not there for consent', async () => {
    const { agent: client } = agent({ handlers: { 'guest-sync-delimited': { stall: true } } })
    expect(await failure(client.shutdown('powerdown', { timeout_ms: 10 }))).toMatchObject({
      kind: 'timeout',
      sent: false,
    })
  })
})

describe('an agent that is silent, late or lies', () => {
  it('finds the answer behind whatever was left in the channel', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(
          fc.oneof(
            fc.uint8Array({ maxLength: 300 }),
            fc
              .constantFrom('{"return":{}}\n', '\xff', '{"return": 1}\n', '\n')
              .map((text) => Buffer.from(text, 'latin1')),
            fc.constant(Buffer.concat([Buffer.of(0xff), Buffer.from('{"return": 5}\r\n')])),
          ),
          { maxLength: 8 },
        ),
        fc.infiniteStream(fc.integer({ min: 1, max: 20 })),
        async (leftover, sizes) => {
          const guest = new FakeAgent({
            leftover: leftover.map((raw) => ({ raw })),
            cut: (bytes) => cutAt(bytes, sizes),
          })
          const client = new AgentClient(guest.stream(), { sync_id: () => 7_654_321 })
          expect((await client.osInfo()).id).toBe('debian')
          expect(await client.freezeStatus()).toBe('thawed')
          client.close()
          await guest.close()
        },
      ),
      { numRuns: 100 },
    )
  })

  it('drops a late answer by synchronizing again', async () => {
    const late = Promise.withResolvers<void>()
    const { guest, agent: client } = agent({
      handlers: {
        'guest-get-osinfo': ({ nth }) =>
          nth === 1 ? [{ until: late.promise }, { return: { id: 'late' } }] : { return: { id: 'now' } },
      },
    })
    expect(await failure(client.osInfo({ timeout_ms: 10 }))).toMatchObject({ kind: 'timeout', sent: true })
    late.resolve()
    expect((await client.osInfo()).id).toBe('now')
    expect(commands(guest).filter((command) => command === 'guest-sync-delimited').length).toBe(2)
  })

  it('names what may be wrong when nobody answers at all', async () => {
    const { agent: client } = agent({ handlers: { 'guest-sync-delimited': { stall: true } } })
    const error = await failure(client.ping({ timeout_ms: 10 }))
    expect(error).toMatchObject({ kind: 'timeout', sent: false, message: expect.stringContaining('not installed') })
    expect((await failure(client.ping({ signal: AbortSignal.abort() }))).kind).toBe('aborted')
  })

  it('gives up waiting for the channel at the deadline, and the channel goes to the next', async () => {
    const gate = Promise.withResolvers<void>()
    const { agent: client } = agent({ handlers: { 'guest-ping': [{ until: gate.promise }, { return: {} }] } })
    const first = client.ping()
    const second = failure(client.osInfo({ timeout_ms: 10 }))
    const third = client.osInfo()
    expect(await second).toMatchObject({ kind: 'timeout', message: expect.stringContaining('another request') })
    gate.resolve()
    await first
    expect((await third).id).toBe('debian')
  })

  it('does not pile up requests that nobody reads', async () => {
    const ours = new Duplex({ read() {}, write() {} })
    const client = closing(new AgentClient(ours))
    for (let n = 0; n < 300; n += 1) await failure(client.ping({ timeout_ms: 0 }))
    expect(ours.writableLength).toBeLessThan(20_000)
    expect((await failure(client.ping())).message).toContain('reads nothing')
  })

  it.each<[string, Handlers]>([
    ['garbage', { 'guest-ping': { raw: 'garbage\n' } }],
    ['no object', { 'guest-ping': { raw: '[1]\n' } }],
    ['neither result nor error', { 'guest-ping': { raw: '{}\n' } }],
    ['a malformed error', { 'guest-ping': { raw: '{"error": 1}\n' } }],
    ['an endless line', { 'guest-ping': { raw: 'x'.repeat(5 * 1024 * 1024) } }],
  ])('reports %s as a lie, and works again after it', async (_, handlers) => {
    const { guest, agent: client } = agent({ handlers })
    expect(await failure(client.ping())).toMatchObject({ kind: 'protocol' })
    expect((await client.osInfo()).id).toBe('debian')
    delete guest.handlers['guest-ping']
  })

  it('is not led astray by answers nobody asked for', async () => {
    const twice = [{ return: {} }, { return: { id: 'forged' } }]
    const { guest, agent: client } = agent({ handlers: { 'guest-ping': twice } })
    await client.ping()
    expect((await client.osInfo()).id).toBe('debian')
    guest.say({ return: { id: 'forged' } })
    expect((await client.osInfo()).id).toBe('debian')
  })

  it('works with an old agent that repeats no ids, and drops its late answers too', async () => {
    // Like the real one, it answers one request after the other.
    const late = Promise.withResolvers<void>()
    const sync: Handler = async ({ args, nth }) => {
      if (nth > 1) await late.promise
      return { return: args.id, id: undefined }
    }
    const { guest, agent: client } = agent({
      handlers: {
        'guest-sync-delimited': sync,
        'guest-ping': [{ until: late.promise }, { return: { id: 'late' }, id: undefined }],
        'guest-get-osinfo': { return: { id: 'debian' }, id: undefined },
      },
    })
    expect((await failure(client.ping({ timeout_ms: 10 }))).kind).toBe('timeout')
    const asked = client.osInfo()
    await guest.came('guest-sync-delimited', 2)
    late.resolve()
    expect((await asked).id).toBe('debian')
    guest.say({ return: { id: 'forged' } })
    await new Promise((resolve) => setImmediate(resolve))
    expect((await client.osInfo()).id).toBe('debian')
  })

  it.each([
    ['whole', '{"return":{"id":"forged"}}\n'],
    ['in part', '{"return":{"id":'],
  ])('drops what an old agent sends right behind an answer, %s', async (_, extra) => {
    const old = { 'guest-get-osinfo': { return: { id: 'debian' }, id: undefined } }
    // The first sync and the ping are each followed by it, in one chunk.
    const sync: Handler = ({ args, nth }) => {
      const reply = Buffer.concat([Buffer.of(0xff), Buffer.from(`{"return":${Number(args.id)}}\n`)])
      return { raw: nth === 1 ? Buffer.concat([reply, Buffer.from(extra)]) : reply }
    }
    const ping = { raw: `{"return":{}}\n${extra}` }
    const { guest, agent: client } = agent({ handlers: { ...old, 'guest-sync-delimited': sync, 'guest-ping': ping } })
    await client.ping()
    expect((await client.osInfo()).id).toBe('debian')
    expect(commands(guest).filter((command) => command === 'guest-sync-delimited').length).toBe(3)
  })

  it('cannot make us read between requests', async () => {
    const { guest, agent: client } = agent()
    await client.ping()
    for (let n = 0; n < 100; n += 1) guest.say({ raw: Buffer.alloc(1024 * 1024, 'x') })
    await new Promise((resolve) => setTimeout(resolve, 20))
    expect(guest.unread_bytes).toBeGreaterThan(90 * 1024 * 1024)
    expect((await client.osInfo()).id).toBe('debian')
  })

  it('stops a flood', async () => {
    const flood = { raw: Buffer.alloc(130 * 1024 * 1024, 'x') }
    const { agent: client } = agent({ handlers: { 'guest-sync-delimited': flood } })
    expect(await failure(client.ping())).toMatchObject({ kind: 'protocol', message: expect.stringContaining('floods') })
  })

  it('ends all waits when the channel closes', async () => {
    const { guest, agent: client } = agent({ handlers: { 'guest-ping': { stall: true } } })
    const waiting = Promise.all([failure(client.ping()), failure(client.osInfo())])
    await guest.came('guest-ping')
    guest.drop()
    expect((await waiting).map(({ kind }) => kind)).toEqual(['closed', 'closed'])
    await client.closed
  })
})
