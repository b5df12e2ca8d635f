/** Disks from elsewhere: what is taken, what is refused, and that nothing is left. Also such as are made to do harm. */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import http from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { endpoints } from '@wadah/api/endpoints/all'
import { Daemon, purgeDead, until } from '../kit/daemon.ts'

const { images, volumes, vms } = endpoints
let d: Daemon
let dir: string
let server: http.Server
let port: number
let answer: http.RequestListener = (_, res) => res.end()
const raw = () => join(dir, 'disk.raw')

beforeAll(async () => {
  purgeDead()
  dir = mkdtempSync(join(tmpdir(), 'wadah-images-'))
  server = http.createServer((req, res) => answer(req, res))
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
  port = (server.address() as AddressInfo).port
  // The name is allowed, and nothing else that is private.
  d = new Daemon('import_allow_hosts = ["localhost"]\nimport_max_gib = 2')
  await d.start()
  await d.tiny()
  const bytes = Buffer.from(Array.from({ length: 2 ** 20 }, (_, i) => (i * 13 + (i >> 9)) & 0xff))
  bytes.set([0x55, 0xaa], 510)
  const fd = openSync(raw(), 'w')
  writeSync(fd, bytes, 0, bytes.length, 0)
  writeSync(fd, bytes, 0, bytes.length, 5 * 2 ** 20)
  closeSync(fd)
  truncateSync(raw(), 8 * 2 ** 20)
})
afterAll(async () => {
  server.closeAllConnections()
  server.close()
  await d.purge()
  rmSync(dir, { recursive: true, force: true })
})

const qemuImg = (...argv: string[]) => execFileSync('qemu-img', argv, { encoding: 'utf8' })
const sha = (file: string) => createHash('sha256').update(readFileSync(file)).digest('hex')
/** Through the CLI, as people do it. */
function cli(...argv: string[]): { code: number | null; out: string } {
  const { code, stdout, stderr } = d.cli(argv)
  return { code, out: `${stdout}${stderr}` }
}
function staged(): string {
  const dir = `${d.data}/pools/default/wadah/imports`
  return existsSync(dir) ? execFileSync('find', [dir, '-mindepth', '1'], { encoding: 'utf8' }).trim() : ''
}
async function nothingLeft(before: number): Promise<void> {
  expect((await d.api.call(volumes.list)).items.length).toBe(before)
  expect(d.traces().volumes.length).toBe(before)
  expect(d.traces().temporary).toEqual([])
  expect(staged()).toBe('')
}
const count = async () => (await d.api.call(volumes.list)).items.length

describe('what is taken', () => {
  test.each(['qcow2', 'raw', 'vmdk', 'vdi', 'vhdx', 'vpc', 'ova'])(
    '%s, out and in again, is the same disk',
    (format) => {
      if (format === 'qcow2') {
        qemuImg('convert', '-f', 'raw', '-O', 'qcow2', '-c', raw(), join(dir, 'first.qcow2'))
        expect(cli('image', 'import', join(dir, 'first.qcow2'), '--name', 'first').code).toBe(0)
      }
      const file = join(dir, `out.${format}`)
      expect(cli('image', 'export', 'first', file, '--format', format)).toMatchObject({ code: 0 })
      expect(cli('image', 'import', file, '--name', `of-${format}`, '--sha256', sha(file))).toMatchObject({ code: 0 })
      expect(cli('image', 'export', `of-${format}`, join(dir, 'back.raw'))).toMatchObject({ code: 0 })
      expect(sha(join(dir, 'back.raw'))).toBe(sha(raw()))
    },
  )

  test.each([
    ['gzip', 'gz'],
    ['xz', 'xz'],
    ['zstd', 'zst'],
  ])('packed by %s', (program, ending) => {
    execFileSync(program, ['-k', '-q', '-f', raw()])
    expect(cli('image', 'import', `${raw()}.${ending}`, '--name', `packed-${ending}`)).toMatchObject({ code: 0 })
    expect(cli('image', 'export', `packed-${ending}`, join(dir, 'back.raw'))).toMatchObject({ code: 0 })
    expect(sha(join(dir, 'back.raw'))).toBe(sha(raw()))
  })

  test('a volume goes up, is converted, moved, and comes down', async () => {
    const pool = `/mnt/wadah-${d.instance}`
    mkdirSync(pool, { recursive: true, mode: 0o755 })
    try {
      await d.api.call(endpoints.pools.create, { body: { name: 'other', path: pool } })
      for (const argv of [
        ['volume', 'upload', raw(), 'up'],
        ['volume', 'convert', 'up', '--format', 'qcow2'],
        ['volume', 'move', 'up', 'other'],
        ['volume', 'download', 'up', join(dir, 'down.raw')],
      ])
        expect(cli(...argv), argv.join(' ')).toMatchObject({ code: 0 })
      expect(sha(join(dir, 'down.raw'))).toBe(sha(raw()))
      expect((await d.api.call(volumes.get, { params: { volume: 'up' } })).format).toBe('qcow2')
      await d.done(await d.api.call(volumes.delete, { params: { volume: 'up' } }))
      await d.api.call(endpoints.pools.delete, { params: { pool: 'other' } })
    } finally {
      rmSync(pool, { recursive: true, force: true })
    }
  })

  test('a template of a VM, and a VM of the template', async () => {
    await d.create({ name: 'source', image: 'first', start: true })
    await expect(d.api.call(images.fromVm, { body: { name: 'template', vm: 'source' } })).rejects.toMatchObject({
      fault: { code: 'wrong_state' },
    })
    await d.done(await d.api.call(vms.stop, { params: { vm: 'source' } }))
    await until('its end', async () => (await d.vm('source')).status.state === 'stopped')
    expect(cli('image', 'create', 'template', '--from-vm', 'source')).toMatchObject({ code: 0 })
    await d.create({ name: 'copy', image: 'template', start: true })
    expect((await d.vm('copy')).status.state).toBe('running')
    for (const vm of ['copy', 'source'])
      await d.done(await d.api.call(vms.delete, { params: { vm }, query: { force: true } }))
  })
})

describe('what is refused', () => {
  const disk = (name: string, make: (file: string) => void): [string, string] => {
    const file = join(dir, name)
    make(file)
    return [name, file]
  }
  const patch = (file: string, at: number, bytes: Buffer) => {
    const fd = openSync(file, 'r+')
    writeSync(fd, bytes, 0, bytes.length, at)
    closeSync(fd)
  }
  const big = (value: bigint) => {
    const buffer = Buffer.alloc(8)
    buffer.writeBigUInt64BE(value)
    return buffer
  }
  const made: [string, (file: string) => void, RegExp][] = [
    [
      'backing-shadow',
      (f) => void qemuImg('create', '-q', '-u', '-f', 'qcow2', '-b', '/etc/shadow', '-F', 'raw', f, '1M'),
      /backing file/,
    ],
    [
      'data-file',
      (f) => {
        qemuImg('create', '-q', '-f', 'qcow2', '-o', `data_file=${join(dir, 'victim')},data_file_raw=on`, f, '1M')
      },
      /external data file/,
    ],
    [
      'cut-in-half',
      (f) => {
        qemuImg('convert', '-f', 'raw', '-O', 'qcow2', raw(), f)
        truncateSync(f, statSync(f).size / 2)
      },
      /cut off/,
    ],
    [
      'eight-eib',
      (f) => {
        qemuImg('create', '-q', '-f', 'qcow2', f, '1M')
        patch(f, 24, big(2n ** 63n))
      },
      /size/,
    ],
    [
      'two-pib',
      (f) => void qemuImg('create', '-q', '-f', 'qcow2', '-o', 'cluster_size=2M', f, '2048T'),
      /size|at most/,
    ],
    ['larger-than-allowed', (f) => void qemuImg('create', '-q', '-f', 'qcow2', f, '2T'), /at most/],
    [
      'vmdk-flat',
      (f) =>
        writeFileSync(f, '# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 1 FLAT "/etc/shadow" 0\n'),
      /other files/,
    ],
    [
      'vmdk-sparse-that-names-another',
      (f) => {
        qemuImg('convert', '-f', 'raw', '-O', 'vmdk', raw(), f)
        const text = readFileSync(f).subarray(512, 1536).toString('latin1')
        const line = /RW \d+ SPARSE "[^"]+"/.exec(text)
        patch(f, 512 + (line?.index ?? 0), Buffer.from('RW 16384 FLAT "/etc/shadow" 0'.padEnd(line?.[0].length ?? 0)))
      },
      /another file/,
    ],
    ['a-page', (f) => writeFileSync(f, '<html>404</html>'), /no disk/],
  ]
  test.each(made)('%s', async (name, make, why) => {
    const before = await count()
    const [, file] = disk(name, make)
    const { code, out } = cli('image', 'import', file, '--name', 'bad')
    expect(code).not.toBe(0)
    expect(out).toMatch(why)
    await nothingLeft(before)
  })

  test('a wrong checksum', async () => {
    const before = await count()
    const { code, out } = cli('image', 'import', raw(), '--name', 'bad', '--sha256', '0'.repeat(64))
    expect(code).not.toBe(0)
    expect(out).toContain('checksum is wrong')
    await nothingLeft(before)
  })

  test('a bomb: little that unpacks to more than there may be', async () => {
    const before = await count()
    // 1.2 TiB of nothing in a few bytes: one frame of zstd a gibibyte.
    const gib = join(dir, 'gib')
    writeFileSync(gib, '')
    truncateSync(gib, 2 ** 30)
    execFileSync('zstd', ['-q', '-f', gib, '-o', join(dir, 'gib.zst')])
    const frame = readFileSync(join(dir, 'gib.zst'))
    const frames = 1200
    writeFileSync(join(dir, 'bomb.zst'), Buffer.concat(Array.from({ length: frames }, () => frame)))
    rmSync(gib)
    const { fault } = await d.ended(
      await d.api.call(images.importFile, { query: { name: 'bomb' }, data: readFileSync(join(dir, 'bomb.zst')) }),
    )
    expect(fault?.code).toBe('too_large')
    await nothingLeft(before)
  })
})

describe('from a URL', () => {
  const at = (path = '/disk.raw') => `http://localhost:${port}${path}`
  const start = (name: string, url: string) => d.api.call(images.import, { body: { name, url } })

  test('is taken where the administrator allows it; the query is kept nowhere to be read', async () => {
    answer = (_, res) => res.end(readFileSync(raw()))
    const job = await d.done(await start('url', at('/disk.raw?token=geheim')))
    const image = await d.api.call(images.get, { params: { image: 'url' } })
    expect(image).toMatchObject({ sha256: sha(raw()), source: { format: 'raw', url: at('/disk.raw') } })
    const log = await d.api.call(endpoints.jobs.log, { params: { job: job.id } })
    expect(JSON.stringify([image, job, log])).not.toContain('geheim')
  })

  test.each([
    ['loopback by number', () => `http://127.0.0.1:${port}/`],
    ['loopback by another number', () => `http://2130706433:${port}/`],
    ['IPv6 loopback', () => `http://[::1]:${port}/`],
    ['the metadata service of clouds', () => 'http://169.254.169.254/latest/meta-data'],
    ['a private address', () => 'http://10.0.0.1/'],
  ])('%s is refused', async (_what, url) => {
    const before = await count()
    const ended = await d.ended(await start('bad', url()))
    expect(ended.fault?.code).toBe('forbidden')
    await nothingLeft(before)
  })

  test('a redirect to loopback is refused', async () => {
    const before = await count()
    answer = (_, res) => res.writeHead(302, { location: `http://127.0.0.1:${port}/x` }).end()
    const ended = await d.ended(await start('bad', at()))
    expect(ended.fault?.code).toBe('forbidden')
    await nothingLeft(before)
  })

  test('kill -9 in the middle of it: it goes on where it was', async () => {
    const body = readFileSync(raw())
    const ranges: (string | undefined)[] = []
    let held: http.ServerResponse | undefined
    answer = (req, res) => {
      ranges.push(req.headers.range)
      const from = Number(/bytes=(\d+)-/.exec(req.headers.range ?? '')?.[1] ?? 0)
      const head = { etag: '"one"', 'content-length': body.length - from }
      if (from > 0) {
        res.writeHead(206, { ...head, 'content-range': `bytes ${from}-${body.length - 1}/${body.length}` })
        res.end(body.subarray(from))
        return
      }
      res.writeHead(200, head)
      res.write(body.subarray(0, 3 * 2 ** 20))
      held = res
    }
    const job = await start('resumed', at())
    await until('half of it to be there', () => {
      try {
        return (
          statSync(
            staged()
              .split('\n')
              .find((f) => f.endsWith('/file')) ?? '',
          ).size ===
          3 * 2 ** 20
        )
      } catch {
        return false
      }
    })
    await d.kill('SIGKILL')
    held?.destroy()
    await d.start()
    await d.done(await d.api.call(endpoints.jobs.get, { params: { job: job.id } }))
    expect(ranges).toEqual([undefined, `bytes=${3 * 2 ** 20}-`])
    expect((await d.api.call(images.get, { params: { image: 'resumed' } })).sha256).toBe(sha(raw()))
    expect(staged()).toBe('')
  })

  test('kill -9 in the middle of an upload leaves nothing', async () => {
    const before = await count()
    const half = (async function* () {
      yield Buffer.alloc(2 ** 20)
      await new Promise((resolve) => setTimeout(resolve, 60_000).unref())
    })()
    const cut = d.api.call(images.importFile, { query: { name: 'half' }, data: half }).catch(() => 'cut')
    await until('some of it to be there', () => staged().includes('/file'))
    await d.kill('SIGKILL')
    expect(await cut).toBe('cut')
    await d.start()
    await until('what came in to be swept away', () => staged() === '')
    await nothingLeft(before)
  })
})

test('qemu-img runs as a user of nobody, without any right', async () => {
  const before = await count()
  const uid = await until('a process of qemu-img', async () => {
    const job = d.api.call(images.importFile, { query: { name: 'watched', format: 'raw' }, data: zeros(64) })
    let seen: string | undefined
    const look = setInterval(() => {
      seen ??= statusOf('qemu-img')
    }, 1)
    await d.ended(await job)
    clearInterval(look)
    await d.done(await d.api.call(images.delete, { params: { image: 'watched' } }))
    return seen
  })
  expect(uid).toMatch(/Uid:\t[1-9]\d{5,}/)
  expect(uid).toMatch(/CapEff:\t0+\n/)
  expect(uid).toMatch(/NoNewPrivs:\t1/)
  await nothingLeft(before)
})

async function* zeros(mib: number): AsyncGenerator<Uint8Array> {
  for (let i = 0; i < mib; i++) yield Buffer.alloc(2 ** 20, i + 1)
}

function statusOf(program: string): string | undefined {
  try {
    const pid = execFileSync('pgrep', ['-f', `^${program} convert .*${d.instance}`], { encoding: 'utf8' })
      .trim()
      .split('\n')[0]
    return readFileSync(`/proc/${pid}/status`, 'utf8')
  } catch {
    return undefined
  }
}
