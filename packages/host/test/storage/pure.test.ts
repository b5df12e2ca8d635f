import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { admit, human } from '@wadah/api/admit'
import { fileSystemName, mountAt, mountedAt } from '@wadah/host/storage/file-system'
import { coalesce, keyed } from '@wadah/host/storage/order'
import { fileName, parseFileName } from '@wadah/host/storage/pool-folder'
import { convertArgv, percentOf, sourceNode } from '@wadah/host/storage/qemu-img'
import { serveArgv } from '@wadah/host/storage/serve'

describe('admit', () => {
  const room = {
    what: 'pool "default"',
    capacity_bytes: 100 * 2 ** 30,
    promised_bytes: 140 * 2 ** 30,
    overcommit: 1.5,
    field: '/size_mib',
  }
  test('says how much is left when it is too much', () => {
    expect(admit(room, 10 * 2 ** 30)).toEqual({ ok: true })
    const no = admit(room, 10 * 2 ** 30 + 512)
    expect(no).toMatchObject({ ok: false, why: { code: 'no_room', status: 507, field: '/size_mib', effect: 'none' } })
    if (!no.ok) expect(no.why.detail).toContain('pool "default" has 10 GiB left')
  })
  test('never lets the sum pass the ceiling, and always lets nothing pass', () => {
    const n = fc.nat({ max: 2 ** 31 })
    fc.assert(
      fc.property(
        n,
        n,
        n,
        fc.double({ min: 0.1, max: 10, noNaN: true }),
        (capacity_bytes, promised_bytes, wanted, overcommit) => {
          const answer = admit({ what: 'p', capacity_bytes, promised_bytes, overcommit }, wanted)
          expect(answer.ok).toBe(wanted === 0 || promised_bytes + wanted <= Math.floor(capacity_bytes * overcommit))
        },
      ),
    )
  })
  test('sizes for people', () => {
    expect([0, 1023, 1024, 1536, 2 ** 30, 2 ** 60].map(human)).toEqual([
      '0 bytes',
      '1023 bytes',
      '1 KiB',
      '1.5 KiB',
      '1 GiB',
      '1024 PiB',
    ])
  })
})

describe('names of files', () => {
  test('come from ids only', () => {
    expect(fileName({ id: 'vol-k3x4q2m7w5', format: 'qcow2' })).toBe('vol-k3x4q2m7w5.qcow2')
    for (const id of ['../etc/passwd', 'vol-', 'vol-k3x4q2m7w5/..', '', 'VOL-k3x4q2m7w5']) {
      expect(() => fileName({ id, format: 'raw' })).toThrow('does not name a volume')
    }
    expect(() => fileName({ id: 'vol-k3x4q2m7w5', format: 'vmdk' as never })).toThrow('does not name')
  })
  test('are read back, and others are none', () => {
    expect(parseFileName('vol-k3x4q2m7w5.raw')).toEqual({ id: 'vol-k3x4q2m7w5', format: 'raw' })
    fc.assert(
      fc.property(fc.string(), (text) => {
        const name = parseFileName(text)
        if (name !== undefined) expect(fileName(name)).toBe(text)
      }),
    )
  })
})

test('file systems by their magic number', () => {
  expect([0xef53, 0x58465342, 0x9123683e, 0x01021994, 0x6969, 0x65735546].map(fileSystemName)).toEqual([
    'ext4',
    'xfs',
    'btrfs',
    'tmpfs',
    'nfs',
    'fuse',
  ])
  // statfs gives a signed number on some machines.
  expect(fileSystemName(0x9123683e | 0)).toBe('btrfs')
  expect(fileSystemName(0x1234)).toBe('0x1234')
})

describe('qemu-img', () => {
  test('every node of the source is spelled out: format, protocol, what it stands on', () => {
    const argv = convertArgv({
      from: [
        { path: '/p/a.qcow2', format: 'qcow2' },
        { path: '/p/b.raw', format: 'raw' },
      ],
      to: { path: '/p/c.qcow2', format: 'qcow2' },
      size_bytes: 2 ** 30,
      direct_io: { from: false, to: true },
    })
    const source = argv.at(-2) ?? ''
    expect(argv.with(-2, 'SOURCE').join(' ')).toBe(
      'convert -p -n --target-is-zero -O qcow2 -T writeback -t none -- SOURCE /p/c.qcow2',
    )
    expect(source.startsWith('json:')).toBe(true)
    expect(JSON.parse(source.slice(5))).toEqual({
      driver: 'qcow2',
      'read-only': true,
      file: { driver: 'file', filename: '/p/a.qcow2' },
      backing: { driver: 'raw', 'read-only': true, file: { driver: 'file', filename: '/p/b.raw' } },
    })
  })
  test('what another host serves comes by a descriptor: no path and no address is in it', () => {
    const stream = { data: (async function* () {})(), write: () => undefined, close: () => undefined }
    const argv = convertArgv({
      from: { stream },
      to: { path: '/p/c.raw', format: 'raw' },
      size_bytes: 2 ** 30,
      direct_io: { from: false, to: false },
      bytes_per_s: 4096,
    })
    expect(argv.with(-2, 'SOURCE').join(' ')).toBe(
      'convert -p -n --target-is-zero -O raw -T writeback -t writeback -r 4096 -- SOURCE /p/c.raw',
    )
    expect(JSON.parse((argv.at(-2) ?? '').slice(5))).toMatchObject({
      driver: 'raw',
      file: { driver: 'nbd', server: { type: 'fd', str: '3' } },
    })
    expect(serveArgv([{ path: '/p/a.raw', format: 'raw' }], true, '/s/s').slice(0, 4)).toEqual([
      '--read-only',
      '--cache=none',
      '--socket=/s/s',
      '--',
    ])
  })
  test('a disk that stands by itself has no backing, whatever its head says', () => {
    expect(sourceNode([{ path: '/p/a', format: 'qcow2' }])).toMatchObject({ backing: null })
    expect(sourceNode([{ path: '/p/a', format: 'vmdk' }])).toMatchObject({ backing: null })
  })
  test('a disk inside an archive is read where it lies', () => {
    expect(sourceNode([{ path: '/p/a.ova', format: 'vmdk', part: { offset: 1024, bytes: 4096 } }])).toMatchObject({
      driver: 'vmdk',
      file: { driver: 'raw', offset: 1024, size: 4096, file: { driver: 'file', filename: '/p/a.ova' } },
    })
  })
  test('progress is read from pieces', () => {
    expect(percentOf('    (0.00/100%)\r    (12.50/100%)\r')).toBe(12.5)
    expect(percentOf('(100.00/100%)')).toBe(100)
    expect(percentOf('(1')).toBeUndefined()
  })
})

describe('order', () => {
  test('one at a time per key, failures included', async () => {
    const alone = keyed()
    const seen: string[] = []
    const work =
      (name: string, fails = false) =>
      async () => {
        seen.push(`+${name}`)
        await new Promise((done) => setTimeout(done, 5))
        seen.push(`-${name}`)
        if (fails) throw new Error(name)
      }
    await Promise.allSettled([alone('k', work('a', true)), alone('k', work('b')), alone('other', work('c'))])
    const ofK = seen.filter((s) => !s.endsWith('c'))
    expect(ofK).toEqual(['+a', '-a', '+b', '-b'])
    expect(seen.indexOf('+c')).toBeLessThan(seen.indexOf('-a'))
  })

  test('every caller gets a run that began after its call; callers meanwhile share one', async () => {
    let running = 0
    let runs = 0
    const sync = coalesce(async () => {
      runs += 1
      running += 1
      expect(running).toBe(1)
      await new Promise((done) => setTimeout(done, 5))
      running -= 1
    })
    await Promise.all(Array.from({ length: 20 }, () => sync('dir')))
    expect(runs).toBe(2)
    await sync('dir')
    expect(runs).toBe(3)
  })

  test('a failed run is the failure of those who waited for it, and of nobody after', async () => {
    let runs = 0
    const sync = coalesce(async () => {
      runs += 1
      if (runs === 1) throw new Error('first')
    })
    const [a, b, c] = await Promise.allSettled([sync('d'), sync('d'), sync('d')])
    expect([a?.status, b?.status, c?.status]).toEqual(['rejected', 'fulfilled', 'fulfilled'])
  })
})

describe('what is mounted where a path lies', () => {
  const mountinfo = [
    '25 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw',
    '31 25 0:27 / /srv rw shared:5 master:2 - tmpfs tmpfs rw',
    '32 31 0:50 / /srv/common rw,relatime - fuse.glusterfs 192.0.2.1:/disks rw,user_id=0',
    '33 31 0:51 / /srv/with\\040space rw - nfs4 server:/x rw,vers=4.2',
    '34 31 0:52 / /srv/twice rw - nfs server:/x rw',
    '35 31 0:53 / /srv/twice rw - xfs /dev/vdb rw',
    'not a line',
  ].join('\n')
  test.each([
    ['/srv/common/wadah/volumes', 'fuse.glusterfs'],
    ['/srv/common', 'fuse.glusterfs'],
    ['/srv/commonplace', 'tmpfs'],
    ['/srv/with space/a', 'nfs4'],
    ['/srv/twice/a', 'xfs'],
    ['/home', 'ext4'],
  ])('%s: %s', (path, type) => expect(mountedAt(mountinfo, path)).toBe(type))
  test('it is told from what else may be mounted there, also anew or with other options', () => {
    const at = (line: string) => mountAt(line, '/srv/common/wadah')
    const now = at(mountinfo)
    const anew = at(
      mountinfo.replace('32 31 0:50', '77 31 0:91').replace('rw,relatime - fuse', 'rw,relatime shared:9 - fuse'),
    )
    expect(anew.what).toBe(now.what)
    expect(anew.which).not.toBe(now.which)
    for (const [a, b] of [
      ['192.0.2.1:/disks', '192.0.2.1:/other'],
      ['rw,user_id=0', 'rw,nolock'],
      ['0:50 / /srv', '0:50 /sub /srv'],
      ['fuse.glusterfs', 'nfs4'],
    ] as const)
      expect(at(mountinfo.replace(a, b)).what).not.toBe(now.what)
    // What NFS makes up anew at each mount is no other file system.
    const nfs = (port: number) => at(mountinfo.replace('rw,user_id=0', `rw,addr=192.0.2.1,mountport=${port},vers=3`))
    expect(nfs(1).what).toBe(nfs(2).what)
    expect(at('').which).toBe('')
  })
  test('nothing known, nothing said', () => expect(mountedAt('', '/srv')).toBe(''))
})
