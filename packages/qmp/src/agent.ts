import type { Duplex } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { AgentChannel, type AgentOptions, type RequestOptions } from './agent-channel.ts'
import {
  type AgentInfo,
  type ExecStatus,
  type GuestInterfaces,
  type GuestOs,
  asExecStatus,
  asInfo,
  asInteger,
  asInterfaces,
  asObject,
  asOs,
  lie,
} from './agent-checks.ts'
import { type FileOptions, getFile, putFile } from './agent-files.ts'
import { connectUnix } from './connect.ts'
import { QmpError, isQmpError } from './errors.ts'

export type ConnectAgentOptions = AgentOptions & {
  /** UNIX socket behind the virtio-serial port `org.qemu.guest_agent.0`. */
  path: string
  /** Deadline until which a missing socket is tried again. Default 5 s. */
  connect_timeout_ms?: number
  signal?: AbortSignal | undefined
  /** Settles when the QEMU process is gone. */
  gone?: Promise<unknown> | undefined
}

export type ExecOptions = RequestOptions & {
  /** Program in the guest; an absolute path unless the agent's PATH finds it. No shell is involved. */
  path: string
  args?: readonly string[]
  /** Replaces the agent's own environment, PATH included. */
  env?: { readonly [name: string]: string }
  /** Given to its standard input, at most 8 MiB. */
  input?: Uint8Array
  /** Whether to collect standard output and error. Default true. */
  capture?: boolean
  /** More output than this, per stream, is cut. The agent itself keeps at most 16 MiB, which is the default. */
  max_output_bytes?: number
}

export type ExecResult = {
  pid: number
  /** Undefined when a signal ended the program. */
  exit_code: number | undefined
  signal: number | undefined
  stdout: Buffer
  stderr: Buffer
  stdout_truncated: boolean
  stderr_truncated: boolean
}

const CONNECT_TIMEOUT_MS = 5_000
const SHUTDOWN_REFUSAL_MS = 2_000
const EXEC_TIMEOUT_MS = 60_000
/** GUEST_EXEC_MAX_OUTPUT of qga/commands.c. */
const MAX_OUTPUT_BYTES = 16 * 1024 * 1024
const MAX_INPUT_BYTES = 8 * 1024 * 1024
const FIRST_POLL_MS = 5
const LAST_POLL_MS = 500
const MAX_PID = 2 ** 53 - 1
const MAX_COUNT = 1_000_000

/**
 * Connects to the channel of a guest agent. That succeeds as soon as QEMU listens, whether or not an agent runs in the guest:
 * `ping()` tells.
 * @throws QmpError `connect-failed`, `aborted`
 */
export async function connectAgent(options: ConnectAgentOptions): Promise<AgentClient> {
  const timeout_ms = options.connect_timeout_ms ?? CONNECT_TIMEOUT_MS
  const { path, signal, gone } = options
  return new AgentClient(await connectUnix({ path, timeout_ms, signal, gone }), options)
}

/**
 * A client of qemu-ga. Nothing the guest says is trusted. One request is on the wire at a time; a long exec does not hold the
 * channel between its polls. Every method takes a deadline (`timeout_ms`, default 10 s) and a signal, and throws QmpError.
 */
export class AgentClient {
  readonly #channel: AgentChannel

  constructor(stream: Duplex, options: AgentOptions = {}) {
    this.#channel = new AgentChannel(stream, options)
  }

  /** Settles when the channel ends. Noticed at the next request at the latest: between requests nothing is read. */
  get closed(): Promise<void> {
    return this.#channel.closed
  }

  close(): void {
    this.#channel.close()
  }

  /** QEMU says that the guest closed its end (a reset, an agent that ended): a request without an answer ends with `closed`. */
  left(): void {
    this.#channel.left()
  }

  /** Resolves when an agent answers. */
  async ping(options: RequestOptions = {}): Promise<void> {
    await this.#channel.request('guest-ping', undefined, options)
  }

  async info(options: RequestOptions = {}): Promise<AgentInfo> {
    return asInfo('guest-info', await this.#channel.request('guest-info', undefined, options))
  }

  async osInfo(options: RequestOptions = {}): Promise<GuestOs> {
    return asOs('guest-get-osinfo', await this.#channel.request('guest-get-osinfo', undefined, options))
  }

  async interfaces(options: RequestOptions = {}): Promise<GuestInterfaces> {
    const command = 'guest-network-get-interfaces'
    return asInterfaces(command, await this.#channel.request(command, undefined, options))
  }

  /**
   * Runs a program and waits for its end, default 60 s. The agent cannot stop a program: after a timeout or an abort it runs on,
   * and the error names its process id.
   */
  async exec(options: ExecOptions): Promise<ExecResult> {
    const { input = new Uint8Array(), timeout_ms = EXEC_TIMEOUT_MS, signal } = options
    const max_output_bytes = Math.min(options.max_output_bytes ?? MAX_OUTPUT_BYTES, MAX_OUTPUT_BYTES)
    const deadline_ms = this.#channel.now_ms() + timeout_ms
    if (input.length > MAX_INPUT_BYTES) {
      const message = `the input of ${options.path} is larger than ${MAX_INPUT_BYTES} bytes: put it into a file in the guest`
      throw new QmpError('limit', message, { command: 'guest-exec' })
    }
    const env = Object.entries(options.env ?? {}).map(([name, value]) => `${name}=${value}`)
    const started = await this.#channel.request(
      'guest-exec',
      {
        path: options.path,
        arg: options.args ?? [],
        ...(env.length > 0 ? { env } : {}),
        ...(input.length > 0 ? { 'input-data': Buffer.from(input).toString('base64') } : {}),
        'capture-output': options.capture ?? true,
      },
      { timeout_ms, signal },
    )
    const pid = asInteger('guest-exec', asObject('guest-exec', started).pid, 'pid', 0, MAX_PID)
    try {
      const status = await this.#untilExited(pid, deadline_ms, signal)
      const { exited: _, ...result } = status
      return { pid, ...result, ...cut(result, max_output_bytes) }
    } catch (error) {
      // It knew the process a moment ago: another agent answers by now, after a restart of it or of the guest.
      if (isQmpError(error, 'command-failed')) {
        const message = `the guest agent was restarted while ${options.path} ran; what came of it is not known`
        throw new QmpError('closed', message, { command: 'guest-exec', sent: true, cause: error })
      }
      if (!isQmpError(error, 'timeout') && !isQmpError(error, 'aborted')) throw error
      const what = error.kind === 'timeout' ? `did not end within ${timeout_ms} ms` : 'was not waited for any longer'
      const message = `${options.path} (process ${pid} in the guest) ${what}; it may still run`
      throw new QmpError(error.kind, message, { command: 'guest-exec', sent: true, cause: error })
    }
  }

  /** Writes a file in the guest (mode as the agent's umask leaves it); gives back the bytes written. */
  putFile(
    path: string,
    content: Uint8Array | Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
    options: FileOptions = {},
  ): Promise<number> {
    return putFile(this.#channel, path, content, options)
  }

  /** Reads a file from the guest, piece by piece. */
  getFile(path: string, options: FileOptions & { max_bytes?: number } = {}): AsyncGenerator<Buffer> {
    return getFile(this.#channel, path, options)
  }

  /** Freezes all file systems; gives back their number. Thaw soon: the guest stands still for whoever writes. */
  freeze(options: RequestOptions = {}): Promise<number> {
    return this.#count('guest-fsfreeze-freeze', options)
  }

  thaw(options: RequestOptions = {}): Promise<number> {
    return this.#count('guest-fsfreeze-thaw', options)
  }

  async freezeStatus(options: RequestOptions = {}): Promise<'thawed' | 'frozen'> {
    const command = 'guest-fsfreeze-status'
    const status = await this.#channel.request(command, undefined, options)
    if (status !== 'thawed' && status !== 'frozen') throw lie(command, 'the status is neither thawed nor frozen')
    return status
  }

  /** Sets the guest's clock: to `time_ms` since 1970, or from its hardware clock when left out. */
  async setTime(time_ms?: number, options: RequestOptions = {}): Promise<void> {
    // A double holds these nanoseconds to within 256 ns.
    const args = time_ms === undefined ? undefined : { time: Math.round(time_ms) * 1_000_000 }
    await this.#channel.request('guest-set-time', args, options)
  }

  /** The guest's clock, ms since 1970. */
  async getTime(options: RequestOptions = {}): Promise<number> {
    const ns = await this.#channel.request('guest-get-time', undefined, options)
    // More than a double holds exactly; to within 256 ns it does.
    if (typeof ns !== 'number' || !Number.isFinite(ns)) throw lie('guest-get-time', 'it is no time')
    return ns / 1_000_000
  }

  /**
   * Asks the guest to go down. The agent answers only to refuse, so silence (2 s by default) counts as consent: whether it
   * happens is told by QEMU's SHUTDOWN or RESET event.
   */
  async shutdown(mode: 'powerdown' | 'reboot' | 'halt' = 'powerdown', options: RequestOptions = {}): Promise<void> {
    // The ping synchronizes, so that silence after it can only be the shutdown's.
    await this.ping(options)
    try {
      const { timeout_ms = SHUTDOWN_REFUSAL_MS, signal } = options
      await this.#channel.request('guest-shutdown', { mode }, { timeout_ms, signal })
    } catch (error) {
      if (isQmpError(error, 'timeout') && error.sent) return
      if (isQmpError(error, 'closed') && error.sent) return
      throw error
    }
  }

  /** Any other command; the result is unchecked and must not be trusted. */
  request(command: string, args?: object, options: RequestOptions = {}): Promise<unknown> {
    return this.#channel.request(command, args, options)
  }

  async #count(command: string, options: RequestOptions): Promise<number> {
    return asInteger(command, await this.#channel.request(command, undefined, options), 'the number', 0, MAX_COUNT)
  }

  async #untilExited(
    pid: number,
    deadline_ms: number,
    signal: AbortSignal | undefined,
  ): Promise<Extract<ExecStatus, { exited: true }>> {
    const command = 'guest-exec-status'
    // Two streams in base64, and the envelope.
    const max_answer_bytes = Math.ceil((2 * MAX_OUTPUT_BYTES * 4) / 3) + 4096
    for (let pause_ms = FIRST_POLL_MS; ; pause_ms = Math.min(pause_ms * 1.5, LAST_POLL_MS)) {
      const left_ms = deadline_ms - this.#channel.now_ms()
      if (left_ms <= 0) throw new QmpError('timeout', 'the deadline passed', { command, sent: true })
      const answer = await this.#channel.request(command, { pid }, { timeout_ms: left_ms, signal, max_answer_bytes })
      const status = asExecStatus(command, answer, MAX_OUTPUT_BYTES)
      if (status.exited) return status
      const wait_ms = Math.min(pause_ms, Math.max(0, deadline_ms - this.#channel.now_ms()))
      await sleep(wait_ms, undefined, { signal }).catch((cause: unknown) => {
        throw new QmpError('aborted', 'the wait was aborted', { command, sent: true, cause })
      })
    }
  }
}

type Output = Pick<ExecResult, 'stdout' | 'stderr' | 'stdout_truncated' | 'stderr_truncated'>

function cut(result: Output, max: number): Output {
  return {
    stdout: result.stdout.subarray(0, max),
    stderr: result.stderr.subarray(0, max),
    stdout_truncated: result.stdout_truncated || result.stdout.length > max,
    stderr_truncated: result.stderr_truncated || result.stderr.length > max,
  }
}
