import { describe, expect, it } from 'vitest'
import { instanceOf } from '../src/local/instance.ts'
import { daemonUnit, guestsUnit, unitNames, unitWord } from '../src/local/units.ts'
import { wadah } from './support/fake.ts'

const instance = (name: string) => instanceOf(name, { uid: 0, env: {} })
const units = { home: '/opt/wadah', instance: instance('default') }
const value = (unit: string, key: string) => new RegExp(`^${key}=(.*)$`, 'm').exec(unit)?.[1]

describe('the units', () => {
  it('leave QEMU and dnsmasq alone, and give the daemon its groups', () => {
    const unit = daemonUnit(units)
    expect(value(unit, 'ExecStart')).toBe(
      '/opt/wadah/bin/wadahd --instance default --data /var/lib/wadah --socket /run/wadah/wadahd.sock',
    )
    expect(['KillMode', 'Delegate', 'Restart', 'Type', 'OOMScoreAdjust'].map((k) => value(unit, k))).toEqual([
      'process',
      'yes',
      'on-failure',
      'notify',
      '-500',
    ])
    // A mount namespace of its own would part the daemon from QEMUs of the daemon before it.
    expect(unit).not.toMatch(/^(Private(Tmp|Mounts|Devices)|Protect\w+|ReadOnlyPaths|RootDirectory|Mount\w+)=/m)
  })
  it('end the guests before the daemon, the network and remote disks, and do not end with the daemon', () => {
    const unit = guestsUnit(units)
    expect(value(unit, 'After')).toBe('wadahd.service network-online.target local-fs.target remote-fs.target')
    expect(value(unit, 'ExecStop')).toBe(
      '/opt/wadah/bin/wadah --socket /run/wadah/wadahd.sock host stop-guests --yes --total 300',
    )
    expect(Number(value(unit, 'TimeoutStopSec'))).toBeGreaterThan(300)
    expect(unit).not.toMatch(/^(Requires|BindsTo|PartOf)=/m)
    expect(guestsUnit(units, false)).not.toContain('ExecStop')
  })
  it('of another instance have its names', () => {
    const lab = { ...units, instance: instance('lab'), listen: '0.0.0.0:8443', config: '/etc/w.toml' }
    expect(unitNames(lab.instance)).toEqual({ daemon: 'wadahd-lab.service', guests: 'wadah-guests-lab.service' })
    expect(value(daemonUnit(lab), 'ExecStart')).toContain(
      '--instance lab --data /var/lib/wadah-lab --socket /run/wadah-lab/wadahd.sock --listen 0.0.0.0:8443 --config /etc/w.toml',
    )
    expect(value(guestsUnit(lab), 'Wants')).toBe('wadahd-lab.service')
  })
  it.each([
    ['/opt/wadah', '/opt/wadah'],
    ['/srv/my disks/a', '"/srv/my disks/a"'],
    ['/srv/100%', '/srv/100%%'],
    ['/srv/$HOME', '/srv/$$HOME'],
    ['a"b\\c', '"a\\"b\\\\c"'],
    ['', '""'],
  ])('quote %j as %s', (text, word) => {
    expect(unitWord(text)).toBe(word)
  })
})

describe('wadah init', () => {
  it('prints the units without doing anything', async () => {
    const r = await wadah(['init', '--print', '--instance', 'lab'])
    expect([r.code, r.stdout.match(/^# \/etc\/.*/gm)]).toEqual([
      0,
      ['# /etc/systemd/system/wadahd-lab.service', '# /etc/systemd/system/wadah-guests-lab.service'],
    ])
  })
})
