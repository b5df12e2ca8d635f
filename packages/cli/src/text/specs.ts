/** The small languages of options: `[ADDR:]HOSTPORT:GUESTPORT[/udp]`, `cpu=50%,iops=200`, `key=value`, `NAME:/path`. */
import { fail } from '@wadah/api/fault'
import { IPV4_PATTERN } from '@wadah/api/schema/common'
import type { Hostdev } from '@wadah/api/schema/devices'
import type { DiskInput, DiskLimits, Limits, NicLimits, PublishInput } from '@wadah/api/schema/vm'
import { parseBytes, parseInteger, parseMib } from './size.ts'

const IPV4 = new RegExp(IPV4_PATTERN)

/** `8080:80`, `192.168.1.5:8080:80`, `5353:53/udp`. */
export function parsePublish(text: string): PublishInput {
  const match = /^(?:([^:/]+):)?(\d{1,5}):(\d{1,5})(?:\/(tcp|udp))?$/.exec(text.trim())
  if (!match) {
    throw fail(
      'invalid',
      `--publish: "${text}" is not [ADDRESS:]HOSTPORT:GUESTPORT[/udp]; write for example 8080:80 or 127.0.0.1:8080:80`,
      { field: '--publish' },
    )
  }
  const [, address, port, to, protocol] = match
  if (address !== undefined && !IPV4.test(address)) {
    throw fail('invalid', `--publish: "${address}" is not an IPv4 address of this host`, { field: '--publish' })
  }
  return {
    port: parseInteger(port!, '--publish', 1, 65_535),
    to: parseInteger(to!, '--publish', 1, 65_535),
    ...(address === undefined ? {} : { address }),
    ...(protocol === undefined ? {} : { protocol: protocol as 'tcp' | 'udp' }),
  }
}

export type ParsedLimits = { limits: Limits; disk: DiskLimits; nic: NicLimits }
export const LIMIT_KEYS = ['cpu', 'cpu-weight', 'memory-overhead', 'iops', 'disk', 'net-in', 'net-out'] as const

/** Several `--limit` options; `none` takes a limit away. `cpu=50%` is half a core, `cpu=200%` two. */
export function parseLimits(texts: readonly string[]): ParsedLimits {
  const parsed: ParsedLimits = { limits: {}, disk: {}, nic: {} }
  for (const part of texts.flatMap((t) => t.split(',')).filter((p) => p.trim() !== '')) {
    const [key, value] = splitPair(part, '--limit')
    const what = `--limit ${key}`
    const none = value === 'none'
    switch (key) {
      case 'cpu': {
        if (!none && !/^\d+%$/.test(value)) {
          throw fail('invalid', `${what}: "${value}" is not a percentage; 50% is half a core, 200% two cores`, {
            field: what,
          })
        }
        parsed.limits.cpu_cap_percent = none ? null : parseInteger(value.slice(0, -1), what, 1, 25_600)
        break
      }
      case 'cpu-weight':
        parsed.limits.cpu_weight = parseInteger(none ? '100' : value, what, 1, 10_000)
        break
      case 'memory-overhead':
        parsed.limits.memory_overhead_mib = parseMib(value, what)
        break
      case 'iops':
        parsed.disk.iops = none ? null : parseInteger(value, what, 1, 10_000_000)
        break
      case 'disk':
        parsed.disk.bytes_per_s = none ? null : parseRate(value, what)
        break
      case 'net-in':
        parsed.nic.in_bytes_per_s = none ? null : parseRate(value, what)
        break
      case 'net-out':
        parsed.nic.out_bytes_per_s = none ? null : parseRate(value, what)
        break
      default:
        throw fail('invalid', `--limit: there is no limit "${key}"; there are ${LIMIT_KEYS.join(', ')}`, {
          field: '--limit',
        })
    }
  }
  return parsed
}

function parseRate(text: string, what: string): number {
  return parseBytes(text.replace(/\/s$/, ''), what)
}

function splitPair(text: string, what: string): [string, string] {
  const at = text.indexOf('=')
  if (at <= 0) throw fail('invalid', `${what}: "${text}" is not KEY=VALUE`, { field: what })
  return [text.slice(0, at).trim(), text.slice(at + 1).trim()]
}

/** Several `--label key=value`. */
export function parseLabels(texts: readonly string[]): Record<string, string> {
  return Object.fromEntries(texts.map((t) => splitPair(t, '--label')))
}

/** `name=data,size=10G,pool=fast,format=raw` or `volume=old`. */
export function parseDisk(text: string): DiskInput {
  const disk: DiskInput = {}
  for (const part of text.split(',')) {
    const [key, value] = splitPair(part, '--add-disk')
    if (key === 'size') disk.size_mib = parseMib(value, '--add-disk size')
    else if (key === 'name') disk.name = value
    else if (key === 'volume') disk.volume = value
    else if (key === 'pool') disk.pool = value
    else if (key === 'format' && (value === 'qcow2' || value === 'raw')) disk.format = value
    else {
      throw fail(
        'invalid',
        `--add-disk: "${part}" is not understood; write name=…, size=…, volume=…, pool=…, format=qcow2 or format=raw`,
        { field: '--add-disk' },
      )
    }
  }
  return disk
}

/** `pci=0000:03:00.0`, `usb=1-2.3`, `usb=046d:c52b`, each with `,name=…`; unless named, the first free of `dev0`, `dev1` … */
export function parseHostdevs(texts: readonly string[], there: readonly { name: string }[]): Hostdev[] {
  const out: Hostdev[] = []
  for (const text of texts) {
    let name: string | undefined
    let what: { pci: string } | { port: string } | { vendor: string; product: string } | undefined
    for (const part of text.split(',')) {
      const [key, value] = splitPair(part, '--hostdev')
      const id = /^([0-9a-f]{4}):([0-9a-f]{4})$/.exec(value)
      if (key === 'name') name = value
      else if (key === 'pci' && !what) what = { pci: value }
      else if (key === 'usb' && !what) what = id ? { vendor: id[1]!, product: id[2]! } : { port: value }
      else what = undefined
      if (key !== 'name' && !what) break
    }
    if (!what)
      throw fail(
        'invalid',
        `--hostdev: "${text}" is not understood; write pci=ADDRESS, usb=PORT or usb=VENDOR:PRODUCT`,
        {
          field: '--hostdev',
          remedy: 'wadah host devices',
        },
      )
    const taken = [...there, ...out].map((d) => d.name)
    for (let i = 0; name === undefined; i++) if (!taken.includes(`dev${i}`)) name = `dev${i}`
    out.push('pci' in what ? { name, kind: 'pci', address: what.pci } : { name, kind: 'usb', ...what })
  }
  return out
}

/** Where a file of `vm cp` lies. `-` is standard input or output. */
export type CopyEnd = { kind: 'guest'; vm: string; path: string } | { kind: 'local'; path: string } | { kind: 'pipe' }

export function parseCopyEnd(text: string): CopyEnd {
  if (text === '-') return { kind: 'pipe' }
  const match = /^([a-z][a-z0-9-]{0,62}):(.*)$/.exec(text)
  if (!match) return { kind: 'local', path: text }
  const [, vm, path] = match
  if (!path!.startsWith('/')) {
    throw fail('invalid', `"${text}": the path in the guest must begin with /, for example ${vm}:/tmp/file`)
  }
  return { kind: 'guest', vm: vm!, path: path! }
}
