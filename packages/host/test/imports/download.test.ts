import { createHash } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { type AddressRules, addressProblem, allowed, resolveOnce } from '@wadah/host/imports/addresses'
import { download, type DownloadOptions, parseUrl } from '@wadah/host/imports/download'

const BODY = Buffer.from(Array.from({ length: 200_000 }, (_, i) => (i * 7 + (i >> 8)) & 0xff))
const SHA = createHash('sha256').update(BODY).digest('hex')
const open: AddressRules = { allowPrivate: true, allowHosts: [] }
const shut: AddressRules = { allowPrivate: false, allowHosts: [] }

let dir: string
let servers: http.Server[] = []
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'wadah-dl-'))
})
afterEach(async () => {
  for (const server of servers) {
    server.closeAllConnections()
    await new Promise((done) => server.close(done))
  }
  servers = []
  rmSync(dir, { recursive: true, force: true })
})

async function serve(answer: http.RequestListener): Promise<string> {
  const server = http.createServer(answer)
  servers.push(server)
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}
const file = () => join(dir, 'file')
function get(url: string, more: Partial<DownloadOptions> = {}): Promise<{ size_bytes: number; sha256: string }> {
  const signal = AbortSignal.timeout(20_000)
  return download({ url, file: file(), limit_bytes: 10 ** 6, rules: open, signal, patience_ms: 1, ...more })
}

describe('a download', () => {
  test('comes whole, with its checksum', async () => {
    const url = await serve((_, res) => res.end(BODY))
    const seen: number[] = []
    expect(await get(url, { progress: (done) => seen.push(done) })).toEqual({ size_bytes: BODY.length, sha256: SHA })
    expect(readFileSync(file()).equals(BODY)).toBe(true)
    expect(seen.at(-1)).toBe(BODY.length)
  })

  test('that is cut goes on where it was, and knows by the ETag that it is the same file', async () => {
    const ranges: (string | undefined)[] = []
    const url = await serve((req, res) => {
      ranges.push(req.headers.range)
      const from = Number(/bytes=(\d+)-/.exec(req.headers.range ?? '')?.[1] ?? 0)
      expect(req.headers['if-range']).toBe(from > 0 ? '"v1"' : undefined)
      const head = { etag: '"v1"', 'content-length': BODY.length - from }
      if (from === 0) res.writeHead(200, head)
      else res.writeHead(206, { ...head, 'content-range': `bytes ${from}-${BODY.length - 1}/${BODY.length}` })
      const end = Math.min(BODY.length, from + 70_000)
      // In order, so that what was sent arrives.
      if (end === BODY.length) res.end(BODY.subarray(from))
      else res.write(BODY.subarray(from, end), () => res.socket?.destroySoon())
    })
    expect(await get(url)).toEqual({ size_bytes: BODY.length, sha256: SHA })
    expect(ranges.length).toBeGreaterThan(2)
    expect(ranges[0]).toBeUndefined()
  })

  test('goes on after a restart, by what lies beside the file', async () => {
    const ranges: (string | undefined)[] = []
    const url = await serve((req, res) => {
      ranges.push(req.headers.range)
      const from = Number(/bytes=(\d+)-/.exec(req.headers.range ?? '')?.[1] ?? 0)
      res
        .writeHead(206, { 'content-range': `bytes ${from}-${BODY.length - 1}/${BODY.length}` })
        .end(BODY.subarray(from))
    })
    writeFileSync(file(), BODY.subarray(0, 123_456))
    writeFileSync(`${file()}.json`, JSON.stringify({ url, etag: '"v1"' }))
    expect(await get(url)).toEqual({ size_bytes: BODY.length, sha256: SHA })
    expect(ranges).toEqual(['bytes=123456-'])
  })

  test('of a file that changed meanwhile begins anew, and of another URL too', async () => {
    const url = await serve((_, res) => res.writeHead(200, { etag: '"v2"' }).end(BODY))
    for (const beside of [{ url, etag: '"v1"' }, { url: 'http://other/', etag: '"v2"' }, { url }]) {
      writeFileSync(file(), Buffer.alloc(1000, 1))
      writeFileSync(`${file()}.json`, JSON.stringify(beside))
      expect((await get(url)).sha256).toBe(SHA)
    }
  })

  test('from a server that lies about what it goes on with begins anew', async () => {
    let asked = 0
    const url = await serve((req, res) => {
      asked += 1
      if (req.headers.range === undefined) return res.writeHead(200, { etag: '"v1"' }).end(BODY)
      // Another part than the one asked for.
      return res.writeHead(206, { 'content-range': `bytes 5-9/${BODY.length}` }).end('xxxxx')
    })
    writeFileSync(file(), BODY.subarray(0, 1000))
    writeFileSync(`${file()}.json`, JSON.stringify({ url, etag: '"v1"' }))
    await expect(get(url)).rejects.toMatchObject({ fault: { code: 'download_failed' } })
    expect(asked).toBe(1)
  })

  test('that never gets on is given up', async () => {
    let tries = 0
    const url = await serve((_, res) => {
      tries += 1
      res.writeHead(200, { 'content-length': 1000 })
      res.write('abc', () => res.destroy())
    })
    await expect(get(url)).rejects.toMatchObject({ fault: { code: 'download_failed', effect: 'none' } })
    expect(tries).toBeLessThan(10)
  })

  test('from a server that falls silent is given up', async () => {
    const url = await serve((_, res) => {
      res.writeHead(200, { 'content-length': 1000 })
      res.write('abc')
    })
    await expect(get(url, { silence_ms: 50 })).rejects.toThrow(/nothing came/)
  })

  test.each([
    [
      'says that it is too large',
      (res: http.ServerResponse) => res.writeHead(200, { 'content-length': 10 ** 9 }).write('x'),
    ],
    [
      'does not say how large it is, and is',
      (res: http.ServerResponse) => res.writeHead(200).end(Buffer.alloc(2 * 10 ** 6)),
    ],
  ])('that %s is stopped', async (_what, answer) => {
    const url = await serve((_, res) => void answer(res))
    await expect(get(url)).rejects.toMatchObject({ fault: { code: 'too_large' } })
    expect(readFileSync(file()).length).toBeLessThanOrEqual(10 ** 6)
  })

  test.each([404, 403, 500])('that is answered %d', async (status) => {
    const url = await serve((_, res) => res.writeHead(status).end('no'))
    await expect(get(url)).rejects.toMatchObject({ fault: { code: 'download_failed' } })
  })

  test('is cancelled at once', async () => {
    const url = await serve((_, res) => {
      res.writeHead(200, { 'content-length': 1000 })
      res.write('abc')
    })
    const controller = new AbortController()
    const gone = get(url, { signal: controller.signal, progress: () => controller.abort(new Error('cancelled')) })
    await expect(gone).rejects.toThrow()
  })
})

describe('redirects', () => {
  test('are followed, some', async () => {
    const end = await serve((_, res) => res.end(BODY))
    const begin = await serve((_, res) => res.writeHead(302, { location: `${end}/x` }).end())
    expect((await get(begin)).sha256).toBe(SHA)
  })
  test('without end are not', async () => {
    const url = await serve((_, res) => res.writeHead(302, { location: '/again' }).end())
    await expect(get(url)).rejects.toThrow(/redirects/)
  })
  test.each(['file:///etc/shadow', 'gopher://x/', 'http://user:pass@x/'])('to %s are refused', async (location) => {
    const url = await serve((_, res) => res.writeHead(302, { location }).end())
    await expect(get(url)).rejects.toMatchObject({ fault: { code: 'invalid' } })
  })
  test.each([
    'http://127.0.0.1:1/',
    'http://[::1]:1/',
    'http://169.254.169.254/latest',
    'http://[::ffff:10.0.0.1]/',
    'http://0x7f000001/',
    'http://inner.test/',
  ])('to %s are refused: each is looked at like the first URL', async (location) => {
    const url = new URL(await serve((_, res) => res.writeHead(302, { location }).end()))
    // Only this name is allowed; where it leads is not.
    const rules = { allowPrivate: false, allowHosts: ['allowed.test'] }
    const resolve = async (name: string) => [name === 'allowed.test' ? '127.0.0.1' : '192.168.1.1']
    const asked = get(`http://allowed.test:${url.port}/`, { rules, resolve })
    await expect(asked).rejects.toMatchObject({ fault: { code: 'forbidden' } })
  })
})

describe('addresses', () => {
  test.each([
    '127.0.0.1',
    '127.9.9.9',
    '10.1.2.3',
    '172.16.0.1',
    '172.31.255.255',
    '192.168.0.1',
    '169.254.169.254',
    '100.64.0.1',
    '100.127.255.255',
    '0.0.0.0',
    '224.0.0.1',
    '239.1.1.1',
    '255.255.255.255',
    '240.0.0.1',
    '::1',
    '::',
    'fe80::1',
    'fc00::1',
    'fd00:ec2::254',
    'ff02::1',
    '::ffff:127.0.0.1',
    '::ffff:10.0.0.1',
    '64:ff9b::7f00:1',
    '64:ff9b::a00:1',
    '2002:7f00:1::',
    '2001:0:7f00:1::',
  ])('%s may not be reached', (address) => {
    expect(addressProblem(address)).toBeDefined()
  })
  test.each(['1.1.1.1', '8.8.8.8', '172.32.0.1', '100.128.0.1', '2606:4700::1111', '64:ff9b::808:808'])(
    '%s may',
    (address) => {
      expect(addressProblem(address)).toBeUndefined()
    },
  )
  test("this host's own may not, by whatever network it is reached", () => {
    expect(addressProblem('203.0.114.5', ['203.0.114.5'])).toContain('this host')
    expect(addressProblem('::ffff:203.0.114.5', ['203.0.114.5'])).toContain('this host')
  })
  test.each([
    [['10.1.0.0/16'], 'x', '10.1.2.3', true],
    [['10.1.0.0/16'], 'x', '10.2.2.3', false],
    [['10.1.2.3'], 'x', '10.1.2.3', true],
    [['10.1.2.3'], 'x', '::ffff:10.1.2.3', true],
    [['mirror.lan'], 'mirror.lan', '10.9.9.9', true],
    [['mirror.lan'], 'evil.lan', '10.9.9.9', false],
    [['fd00::/8'], 'x', 'fd12::1', true],
    [['fd00::/8'], 'x', '10.0.0.1', false],
  ])('allowed hosts %j: %s at %s → %s', (allowHosts, name, address, wanted) => {
    expect(allowed({ allowPrivate: false, allowHosts }, name, address)).toBe(wanted)
  })
  test('one forbidden address among several is enough to refuse', async () => {
    const resolve = async () => ['1.1.1.1', '127.0.0.1']
    await expect(resolveOnce('both.test', shut, resolve)).rejects.toMatchObject({ fault: { code: 'forbidden' } })
  })
  test('a name is looked up once, and the connection goes to what was looked at (DNS rebinding)', async () => {
    const url = new URL(await serve((_, res) => res.end(BODY)))
    let asked = 0
    // The second answer would be another address.
    const resolve = async () => [asked++ === 0 ? '127.0.0.1' : '127.0.0.2']
    const rules = { allowPrivate: false, allowHosts: ['127.0.0.1'] }
    expect((await get(`http://name.test:${url.port}/`, { rules, resolve })).sha256).toBe(SHA)
    expect(asked).toBe(1)
  })
  test('loopback by number is seen before anything is sent', async () => {
    let asked = 0
    const url = await serve((_, res) => {
      asked += 1
      res.end(BODY)
    })
    for (const form of [url, url.replace('127.0.0.1', 'localhost'), url.replace('127.0.0.1', '2130706433')])
      await expect(get(form, { rules: shut })).rejects.toMatchObject({ fault: { code: 'forbidden' } })
    expect(asked).toBe(0)
  })
})

test.each(['ftp://x/y', 'file:///etc/passwd', 'http://u:p@x/', 'https://u@x/', 'hello', ''])(
  '%j is no URL for us',
  (text) => {
    expect(() => parseUrl(text)).toThrow("can't be used")
  },
)
