import { isIP } from 'node:net'
import { QmpError } from './errors.ts'
import { type JsonObject, isObject } from './wire.ts'

/**
 * Checks of what a guest says. The agent runs where the guest's owner is root, so every value may be a lie: each is checked
 * for type and size before anything else sees it. All functions throw QmpError `protocol`.
 */

export const MAX_INTERFACES = 64
export const MAX_ADDRESSES = 64
export const MAX_COMMANDS = 512
const MAX_TEXT = 256

// Control characters would reach terminals and logs; C1 ones are escape sequences too.
// oxlint-disable-next-line no-control-regex -- that is the point
const CONTROL = /[\u0000-\u001f\u007f-\u009f]/g

export function lie(command: string, what: string): QmpError {
  return new QmpError('protocol', `the guest agent answered ${command} wrongly: ${what}`, { command, sent: true })
}

export function asObject(command: string, value: unknown, what = 'the answer'): JsonObject {
  if (!isObject(value)) throw lie(command, `${what} is not an object`)
  return value
}

export function asArray(command: string, value: unknown, what: string): unknown[] {
  if (!Array.isArray(value)) throw lie(command, `${what} is not a list`)
  return value
}

export function asBoolean(command: string, value: unknown, what: string): boolean {
  if (typeof value !== 'boolean') throw lie(command, `${what} is not true or false`)
  return value
}

/** An integer within limits, both included. */
export function asInteger(command: string, value: unknown, what: string, min: number, max: number): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < min || value > max) {
    throw lie(command, `${what} is not an integer from ${min} to ${max}`)
  }
  return value
}

/** Text of at most `max` characters, with control characters replaced by U+FFFD. */
export function asText(command: string, value: unknown, what: string, max = MAX_TEXT): string {
  if (typeof value !== 'string') throw lie(command, `${what} is not text`)
  if (value.length > max) throw lie(command, `${what} is longer than ${max} characters`)
  return printable(value)
}

export function asOptional<T>(value: unknown, check: (value: unknown) => T): T | undefined {
  return value === undefined ? undefined : check(value)
}

/** Bytes sent as base64, at most `max` of them. */
export function asBytes(command: string, value: unknown, what: string, max: number): Buffer {
  if (typeof value !== 'string') throw lie(command, `${what} is not base64 text`)
  if (value.length > Math.ceil(max / 3) * 4) throw lie(command, `${what} is longer than ${max} bytes`)
  if (value.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(value)) throw lie(command, `${what} is not base64`)
  const bytes = Buffer.from(value, 'base64')
  if (bytes.length > max) throw lie(command, `${what} is longer than ${max} bytes`)
  return bytes
}

export function printable(text: string): string {
  return text.replace(CONTROL, '\ufffd')
}

export type AgentInfo = {
  version: string
  /** Commands that exist and are enabled in this guest. */
  commands: Set<string>
}

export function asInfo(command: string, value: unknown): AgentInfo {
  const answer = asObject(command, value)
  const listed = asArray(command, answer.supported_commands, 'supported_commands')
  if (listed.length > MAX_COMMANDS) throw lie(command, `it lists more than ${MAX_COMMANDS} commands`)
  const commands = new Set<string>()
  for (const item of listed) {
    const entry = asObject(command, item, 'a command')
    if (asBoolean(command, entry.enabled, 'enabled')) commands.add(asText(command, entry.name, 'a command name'))
  }
  return { version: asText(command, answer.version, 'version'), commands }
}

export type GuestAddress = { address: string; family: 4 | 6; prefix: number }
export type GuestInterface = {
  name: string
  /** Lower case, or undefined where the guest names none. */
  mac: string | undefined
  addresses: GuestAddress[]
}
export type GuestInterfaces = {
  /** The first 64. */
  interfaces: GuestInterface[]
  /** How many more interfaces and addresses the guest named. */
  omitted: number
}

export function asInterfaces(command: string, value: unknown): GuestInterfaces {
  const listed = asArray(command, value, 'the answer')
  let omitted = Math.max(0, listed.length - MAX_INTERFACES)
  const interfaces = listed.slice(0, MAX_INTERFACES).map((item): GuestInterface => {
    const entry = asObject(command, item, 'an interface')
    const all = asArray(command, entry['ip-addresses'] ?? [], 'ip-addresses')
    omitted += Math.max(0, all.length - MAX_ADDRESSES)
    const mac = asOptional(entry['hardware-address'], (text) => asText(command, text, 'hardware-address', 64))
    return {
      name: asText(command, entry.name, 'an interface name'),
      mac: mac === undefined || mac === '' ? undefined : mac.toLowerCase(),
      addresses: all.slice(0, MAX_ADDRESSES).map((address) => asAddress(command, address)),
    }
  })
  return { interfaces, omitted }
}

function asAddress(command: string, value: unknown): GuestAddress {
  const entry = asObject(command, value, 'an address')
  const address = asText(command, entry['ip-address'], 'ip-address', 64)
  const family = isIP(address)
  if (family !== 4 && family !== 6) throw lie(command, 'ip-address is not an IP address')
  return { address, family, prefix: asInteger(command, entry.prefix, 'prefix', 0, family === 4 ? 32 : 128) }
}

export type GuestOs = {
  id: string | undefined
  name: string | undefined
  pretty_name: string | undefined
  version: string | undefined
  version_id: string | undefined
  kernel_release: string | undefined
  kernel_version: string | undefined
  machine: string | undefined
}

export function asOs(command: string, value: unknown): GuestOs {
  const answer = asObject(command, value)
  const field = (name: string) => asOptional(answer[name], (text) => asText(command, text, name))
  return {
    id: field('id'),
    name: field('name'),
    pretty_name: field('pretty-name'),
    version: field('version'),
    version_id: field('version-id'),
    kernel_release: field('kernel-release'),
    kernel_version: field('kernel-version'),
    machine: field('machine'),
  }
}

export type ExecStatus =
  | { exited: false }
  | {
      exited: true
      exit_code: number | undefined
      signal: number | undefined
      stdout: Buffer
      stderr: Buffer
      stdout_truncated: boolean
      stderr_truncated: boolean
    }

export function asExecStatus(command: string, value: unknown, max_output_bytes: number): ExecStatus {
  const answer = asObject(command, value)
  if (!asBoolean(command, answer.exited, 'exited')) return { exited: false }
  const flag = (name: string) => asOptional(answer[name], (given) => asBoolean(command, given, name)) ?? false
  const bytes = (name: string) => asBytes(command, answer[name] ?? '', name, max_output_bytes)
  return {
    exited: true,
    // Windows exit codes use all 32 bits, and come as a signed or an unsigned number.
    exit_code: asOptional(answer.exitcode, (code) => asInteger(command, code, 'exitcode', -(2 ** 31), 2 ** 32 - 1)),
    signal: asOptional(answer.signal, (number) => asInteger(command, number, 'signal', 0, 2 ** 32 - 1)),
    stdout: bytes('out-data'),
    stderr: bytes('err-data'),
    stdout_truncated: flag('out-truncated'),
    stderr_truncated: flag('err-truncated'),
  }
}
