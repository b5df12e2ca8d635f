import { describe, expect, test } from 'vitest'
import { parseUris, pickAcquire, pickOldest } from '../../src/images/apt.ts'
import { packCpio } from '../../src/images/cpio.ts'
import { moduleName, moduleOrder } from '../../src/images/kmod.ts'
import { chooseSources, DEFAULT_SOURCES } from '../../src/images/sources.ts'

describe('cpio', () => {
  test('headers, padding and trailer', () => {
    const archive = packCpio([
      { kind: 'file', path: 'init', mode: 0o755, data: Buffer.from('hello') },
      { kind: 'char', path: 'dev/null', mode: 0o666, major: 1, minor: 3 },
    ])
    const text = archive.toString('latin1')
    expect(text.slice(0, 6)).toBe('070701')
    expect(text.slice(14, 22)).toBe('000081ED')
    expect(text.slice(54, 62)).toBe('00000005')
    // 110 bytes of header and "init\0" end at 115, padded to 116; 5 bytes of data end at 121, padded to 124.
    expect(text.slice(116, 121)).toBe('hello')
    expect(text.slice(124, 130)).toBe('070701')
    expect(text.slice(138, 146)).toBe('000021B6')
    expect(text).toContain('TRAILER!!!\0')
    expect(archive.length % 4).toBe(0)
  })
})

describe('kernel modules', () => {
  const dep = [
    'kernel/drivers/net/virtio_net.ko: kernel/net/core/net_failover.ko kernel/net/core/failover.ko kernel/virtio/virtio.ko',
    'kernel/net/core/net_failover.ko: kernel/net/core/failover.ko',
    'kernel/net/core/failover.ko:',
    'kernel/virtio/virtio.ko:',
    'kernel/drivers/char/hw_random/virtio-rng.ko: kernel/virtio/virtio.ko',
  ].join('\n')

  test('each after what it needs, none twice, unknown names left out', () => {
    expect(moduleOrder(dep, ['virtio_net', 'virtio-rng', 'virtio', 'ext4']).map(moduleName)).toEqual([
      'virtio',
      'failover',
      'net_failover',
      'virtio_net',
      'virtio_rng',
    ])
  })
})

describe('package sources', () => {
  test('the host’s own mirrors of Debian, nothing else it has', () => {
    const deb822 =
      '# a comment\nTypes: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main contrib\n\n' +
      'Types: deb\nURIs: https://other.example/repo\nSuites: bookworm-security\nComponents: main\n'
    const lines =
      'deb [arch=amd64] https://apt.example.org/tools bookworm main\n# deb http://x.example/debian bookworm main\n'
    expect(chooseSources([deb822, lines])).toEqual([
      { uri: 'http://mirror.example/debian', suite: 'bookworm' },
      { uri: 'http://mirror.example/debian', suite: 'bookworm-updates' },
      DEFAULT_SOURCES[2],
    ])
  })
  test('one-line format, no sources, a mirror asked for', () => {
    expect(chooseSources(['deb http://m.example/debian-security/ bookworm-security main\n'])[2]).toEqual({
      uri: 'http://m.example/debian-security',
      suite: 'bookworm-security',
    })
    expect(chooseSources([])).toEqual(DEFAULT_SOURCES)
    expect(chooseSources([], 'http://lan.example/debian/')[0]).toEqual({
      uri: 'http://lan.example/debian',
      suite: 'bookworm',
    })
  })
  test('sources with quotes or other schemes are not taken', () => {
    expect(chooseSources(['deb file:/mnt/debian bookworm main\ndeb http://a"b/debian bookworm main\n'])).toEqual(
      DEFAULT_SOURCES,
    )
  })
})

describe('the package cache', () => {
  test('the oldest go until the rest fits', () => {
    const files = [
      { size: 10, used_ms: 3 },
      { size: 10, used_ms: 1 },
      { size: 10, used_ms: 2 },
    ]
    expect(pickOldest(files, 15).map((f) => f.used_ms)).toEqual([1, 2])
    expect(pickOldest(files, 30)).toEqual([])
  })
  test('answers of apt', () => {
    expect(parseUris("'http://m.example/a_1%253a2_amd64.deb' a_1%3a2_amd64.deb 123 SHA256:ab\nnoise")).toEqual([
      { file: 'a_1%3a2_amd64.deb', size: 123 },
    ])
    expect(
      pickAcquire(
        'APT "";\nAcquire::http::Proxy "http://p:3128";\nAcquire::Check-Date "false";\nAcquire::Retries "1";',
      ),
    ).toEqual(['Acquire::http::Proxy "http://p:3128";', 'Acquire::Check-Date "false";'])
  })
})
