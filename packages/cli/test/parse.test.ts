import { describe, expect, it } from 'vitest'
import { refusal } from './refusal.ts'
import { parseBytes, parseInteger, parseMib, parseSeconds } from '../src/text/size.ts'
import { parseCopyEnd, parseDisk, parseLabels, parseLimits, parsePublish } from '../src/text/specs.ts'
import { buildCreate, buildEdit, sshKeys } from '../src/text/vm-create.ts'
import { parseRatio } from '../src/commands/pool/edit.ts'
import { newPart } from '../src/commands/vm/log.ts'
import { vm } from './support/samples.ts'

describe('sizes', () => {
  it.each([
    ['1K', 1024],
    ['512M', 512 * 2 ** 20],
    ['1.5G', 1.5 * 2 ** 30],
    ['4GiB', 4 * 2 ** 30],
    ['4gb', 4 * 2 ** 30],
    ['2t', 2 * 2 ** 40],
  ])('%s', (text, bytes) => expect(parseBytes(text, '--disk')).toBe(bytes))
  it.each([
    ['512', 'has no unit'],
    ['', 'is not a size'],
    ['-1M', 'is not a size'],
    ['1e3M', 'is not a size'],
    ['M', 'is not a size'],
    ['1P', 'is not a size'],
    ['99999999999999T', 'too large'],
    ['0.3K', 'whole number of bytes'],
  ])('refuses %j', (text, why) => expect(refusal(() => parseBytes(text, '--disk'))).toContain(why))
  it('counts whole MiB', () => {
    expect(parseMib('1.5G', '--memory')).toBe(1536)
    expect(refusal(() => parseMib('512K', '--memory'))).toContain('whole number of MiB')
    expect(refusal(() => parseMib('0M', '--memory'))).toContain('whole number of MiB')
  })
  it('takes integers in range and times', () => {
    expect(parseInteger('4', '--cpus', 1, 8)).toBe(4)
    for (const bad of ['0', '9', '4.5', '4x', '', '1e1', '0x4'])
      expect(refusal(() => parseInteger(bad, '--cpus', 1, 8))).toContain('1 to 8')
    expect([
      parseSeconds('90', 't'),
      parseSeconds('2m', 't'),
      parseSeconds('1h', 't'),
      parseSeconds('0.5', 't'),
    ]).toEqual([90, 120, 3600, 0.5])
    for (const bad of ['0', '-1', 'x', '5d'])
      expect(refusal(() => parseSeconds(bad, '--timeout'))).toContain('is not a time')
    expect(refusal(() => parseRatio('0'))).toContain('0.1 to 100')
  })
})

describe('--publish', () => {
  it.each([
    ['8080:80', { port: 8080, to: 80 }],
    ['127.0.0.1:8080:80', { address: '127.0.0.1', port: 8080, to: 80 }],
    ['5353:53/udp', { port: 5353, to: 53, protocol: 'udp' }],
  ])('%s', (text, value) => expect(parsePublish(text)).toEqual(value))
  it.each(['80', '0:80', '8080:70000', 'host:8080:80', '1:2:3:4', '8080:80/sctp', '300.1.1.1:1:2'])(
    'refuses %s',
    (text) => expect(refusal(() => parsePublish(text))).toContain('--publish'),
  )
})

describe('--limit, --label, --add-disk, ends of cp', () => {
  it('sorts limits by what they limit', () => {
    expect(parseLimits(['cpu=50%,iops=200', 'net-in=1M/s,disk=none', 'memory-overhead=128M,cpu-weight=300'])).toEqual({
      limits: { cpu_cap_percent: 50, memory_overhead_mib: 128, cpu_weight: 300 },
      disk: { iops: 200, bytes_per_s: null },
      nic: { in_bytes_per_s: 2 ** 20 },
    })
  })
  it.each([
    ['cpu=50', 'percentage'],
    ['ram=1G', 'there is no limit "ram"'],
    ['iops', 'KEY=VALUE'],
    ['iops=0', '1 to'],
  ])('refuses %s', (text, why) => expect(refusal(() => parseLimits([text]))).toContain(why))
  it('reads the others', () => {
    expect(parseLabels(['a=1', 'b=x=y'])).toEqual({ a: '1', b: 'x=y' })
    expect(parseDisk('name=data,size=10G,format=raw')).toEqual({ name: 'data', size_mib: 10_240, format: 'raw' })
    expect(refusal(() => parseDisk('size=10G,cache=none'))).toContain('cache=none')
    expect(parseCopyEnd('web:/etc/hosts')).toEqual({ kind: 'guest', vm: 'web', path: '/etc/hosts' })
    expect(parseCopyEnd('./a:b')).toEqual({ kind: 'local', path: './a:b' })
    expect(parseCopyEnd('-')).toEqual({ kind: 'pipe' })
    expect(refusal(() => parseCopyEnd('web:tmp/x'))).toContain('must begin with /')
  })
})

describe('vm create and edit', () => {
  it('lays options over a file', () => {
    const { body, disk } = buildCreate(
      'web',
      {
        image: 'web-server',
        memory: '512M',
        cpus: '2',
        disk: '4G',
        network: ['lan', 'dmz'],
        publish: ['8080:80'],
        address: '10.1.2.3',
        limit: ['cpu=50%,iops=100'],
        label: ['a=b'],
        waitReady: true,
        seedUser: 'ani',
      },
      {
        base: { name: 'other', labels: { x: 'y' }, cmdline: 'quiet' },
        password: 'geheim-123',
        keys: ['# c\nssh-ed25519 AAA me\n'],
      },
    )
    expect(body).toEqual({
      name: 'web',
      cmdline: 'quiet',
      labels: { x: 'y', a: 'b' },
      image: 'web-server',
      disk_mib: 4096,
      cpus: 2,
      memory_mib: 512,
      limits: { cpu_cap_percent: 50 },
      nics: [{ network: 'lan', publish: [{ port: 8080, to: 80 }], address: '10.1.2.3' }, { network: 'dmz' }],
      seed: { user: 'ani', password: 'geheim-123', ssh_keys: ['ssh-ed25519 AAA me'] },
      start: true,
      wait_ready: true,
    })
    expect(disk).toEqual({ iops: 100 })
  })
  it('takes the name from the file, and refuses to go without', () => {
    expect(buildCreate(undefined, {}, { base: { name: 'f' } }).body).toEqual({ name: 'f' })
    expect(refusal(() => buildCreate(undefined, {}))).toContain('needs a name')
  })
  it('refuses a private key', () => {
    expect(refusal(() => sshKeys('-----BEGIN OPENSSH PRIVATE KEY-----\nx'))).toContain('private key')
    expect(refusal(() => sshKeys('\n# nothing\n'))).toContain('no key')
  })
  it('changes only what is named', () => {
    expect(buildEdit(vm(), { memory: '1G', label: ['b=2'], removeLabel: ['team'] })).toEqual({
      memory_mib: 1024,
      labels: { b: '2' },
    })
    expect(buildEdit(vm(), { limit: ['iops=none', 'net-out=1M'], publish: ['none'], balloon: 'none' })).toEqual({
      balloon_mib: null,
      disks: [{ name: 'root', limits: { iops: null } }],
      nics: [{ name: 'nic0', publish: [], limits: { out_bytes_per_s: 2 ** 20 } }],
    })
    expect(refusal(() => buildEdit(vm(), {}))).toContain('Nothing to change')
  })
})

it('shows only the new part of a log', () => {
  expect(newPart('abcdef', 4, 6)).toBe('ef')
  expect(newPart('abcdef', 6, 6)).toBe('')
  expect(newPart('new', 100, 3)).toBe('new')
  expect(newPart('abc', 10, 1000)).toBe('abc')
})
