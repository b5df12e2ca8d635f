/** The guest agent of one VM, with its errors in our words. Nothing it says is trusted (see @wadah/qmp). */
import { setTimeout as sleep } from 'node:timers/promises'
import { WadahError, fail } from '@wadah/api/fault'
import type { ExecResult, GuestInfo } from '@wadah/api/schema/guest'
import type { Guest } from '@wadah/ports/machine'
import { AgentClient, connectAgent } from '@wadah/qmp/agent'
import { QmpError } from '@wadah/qmp/errors'

const MAX_THAW_TRIES = 5
/** An agent that lives answers within this time, also in a guest that is busy. */
const ANSWER_MS = 10_000
/** A date is set to the second; with half of that and a moment more it is taken for right. */
const CLOCK_OFF_MS = 700
const CLOCK_TRIES = 5
const CLOCK_PAUSE_MS = 1000

export type GuestOptions = {
  path: string
  gone: Promise<unknown>
  log: (line: string) => void
  now_ms: () => number
  /** Writes down until when it may stay frozen, for a daemon that comes after us; undefined: it is not. */
  frozenUntil: (at_ms: number | undefined) => Promise<void>
}

export class VmGuest implements Guest {
  readonly #o: GuestOptions
  #client: Promise<AgentClient> | undefined
  #thawTimer: NodeJS.Timeout | undefined

  constructor(options: GuestOptions) {
    this.#o = options
  }

  async #agent(signal: AbortSignal): Promise<AgentClient> {
    this.#client ??= connectAgent({ path: this.#o.path, gone: this.#o.gone }).then(
      (client) => {
        void client.closed.then(() => {
          this.#client = undefined
        })
        return client
      },
      (error: unknown) => {
        this.#client = undefined
        throw error
      },
    )
    signal.throwIfAborted()
    return this.#client
  }

  async #ask<T>(signal: AbortSignal, work: (agent: AgentClient) => Promise<T>): Promise<T> {
    try {
      return await work(await this.#agent(signal))
    } catch (error) {
      throw agentFault(error)
    }
  }

  /** The agent closed its end of the channel: an answer that it owes never comes, and who waits for it holds up everybody else. */
  left(): void {
    void this.#client?.then(
      (client) => client.left(),
      () => {},
    )
  }

  ping(signal: AbortSignal): Promise<void> {
    return this.#ask(signal, (agent) => agent.ping({ timeout_ms: 5_000, signal }))
  }

  info(signal: AbortSignal): Promise<GuestInfo> {
    return this.#ask(signal, async (agent) => {
      const { version, commands } = await agent.info({ signal })
      const frozen = (await agent.freezeStatus({ signal }).catch(() => 'thawed')) === 'frozen'
      const os = commands.has('guest-get-osinfo') ? await agent.osInfo({ signal }).catch(() => undefined) : undefined
      // A frozen agent refuses nearly everything, and must still be able to say that it is frozen.
      const { interfaces } = frozen ? { interfaces: [] } : await agent.interfaces({ signal })
      return {
        agent_version: version,
        ...(os
          ? {
              os: {
                name: os.pretty_name ?? os.name ?? 'unknown',
                version: os.version_id ?? os.version ?? '',
                kernel: os.kernel_release ?? '',
              },
            }
          : {}),
        interfaces: interfaces.map((i) => ({
          name: i.name,
          ...(i.mac ? { mac: i.mac } : {}),
          addresses: i.addresses.map((a) => `${a.address}/${a.prefix}`),
        })),
        frozen,
      }
    })
  }

  exec(
    request: { argv: string[]; stdin?: Uint8Array; env?: string[]; timeout_ms: number },
    signal: AbortSignal,
  ): Promise<ExecResult> {
    return this.#ask(signal, async (agent) => {
      const [path = '', ...args] = request.argv
      const env = Object.fromEntries(
        (request.env ?? []).map((e) => [e.slice(0, e.indexOf('=')), e.slice(e.indexOf('=') + 1)]),
      )
      // The time given is for the program: that nobody is there to start it is told sooner.
      await agent.ping({ timeout_ms: Math.min(request.timeout_ms, ANSWER_MS), signal })
      const result = await agent.exec({
        path,
        args,
        env,
        ...(request.stdin ? { input: request.stdin } : {}),
        timeout_ms: request.timeout_ms,
        signal,
      })
      return {
        ...(result.exit_code === undefined ? {} : { exit_code: result.exit_code }),
        ...(result.signal === undefined ? {} : { signal: result.signal }),
        stdout: result.stdout.toString('base64'),
        stderr: result.stderr.toString('base64'),
        truncated: result.stdout_truncated || result.stderr_truncated,
      }
    })
  }

  async *readFile(path: string, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    try {
      yield* (await this.#agent(signal)).getFile(path, { signal })
    } catch (error) {
      throw agentFault(error)
    }
  }

  writeFile(path: string, data: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<void> {
    return this.#ask(signal, async (agent) => {
      await agent.putFile(path, data, { signal })
    })
  }

  /**
   * Sets the guest's clock to ours; one that went on from saved RAM believes it is still then. Looked at afterwards: on a busy machine
   * the guest may take seconds until it does what it is told, and is then told a later time.
   * @throws WadahError `agent_failed` also when it is still wrong after all that
   */
  async setTime(signal: AbortSignal): Promise<void> {
    let late_ms = 0
    for (let tries = 1; tries <= CLOCK_TRIES; tries++) {
      try {
        await this.#tellTime(late_ms, signal)
      } catch (error) {
        // Its agent went on from the middle of what it did then; it may take a moment until it hears us.
        if (tries === CLOCK_TRIES || signal.aborted) throw error
        await sleep(CLOCK_PAUSE_MS, undefined, { signal })
        continue
      }
      const asked = this.#o.now_ms()
      const seen = await this.#ask(signal, (agent) => agent.getTime({ timeout_ms: 30_000, signal }))
      const behind = seen < asked ? asked - seen : Math.min(0, this.#o.now_ms() - seen)
      if (Math.abs(behind) <= CLOCK_OFF_MS) return
      if (tries === CLOCK_TRIES)
        throw fail('agent_failed', `The guest took ${tries} times, and is still ${Math.round(behind)} ms behind.`)
      late_ms += behind
    }
  }

  async #tellTime(late_ms: number, signal: AbortSignal): Promise<void> {
    const time_ms = () => this.#o.now_ms() + late_ms
    try {
      await this.#ask(signal, (agent) => agent.setTime(time_ms(), { timeout_ms: 30_000, signal }))
    } catch (error) {
      if (!(error instanceof WadahError) || error.fault.code !== 'agent_failed') throw error
      // The agent of Linux wants hwclock for it, which not every distribution installs.
      const argv = ['date', '-u', '-s', `@${Math.round(time_ms() / 1000)}`]
      const { exit_code } = await this.exec({ argv, timeout_ms: 30_000 }, signal)
      if (exit_code !== 0) throw error
    }
  }

  /** Thaws by itself after `timeout_s`: a client that vanishes must not leave a guest frozen. */
  freeze(timeout_s: number, signal: AbortSignal): Promise<number> {
    return this.#ask(signal, async (agent) => {
      const at_ms = this.#o.now_ms() + timeout_s * 1000
      // Written down first: whoever starts after us must know.
      await this.#o.frozenUntil(at_ms)
      this.thawAt(at_ms)
      return agent.freeze({ timeout_ms: 30_000, signal })
    })
  }

  thaw(signal: AbortSignal): Promise<number> {
    return this.#ask(signal, async (agent) => {
      const count = await agent.thaw({ timeout_ms: 30_000, signal })
      clearTimeout(this.#thawTimer)
      this.#thawTimer = undefined
      await this.#o.frozenUntil(undefined)
      return count
    })
  }

  thawAt(at_ms: number): void {
    clearTimeout(this.#thawTimer)
    this.#thawTimer = setTimeout(() => void this.#thawLater(0), Math.max(0, at_ms - this.#o.now_ms()))
    this.#thawTimer.unref()
  }

  /** Without us nobody would thaw it. */
  async thawBeforeEnd(): Promise<void> {
    if (this.#thawTimer === undefined) return
    await this.thaw(AbortSignal.timeout(3_000)).catch((error: unknown) =>
      this.#o.log(`thaw before the end: ${(error as Error).message}`),
    )
  }

  async #thawLater(tries: number): Promise<void> {
    try {
      await this.thaw(AbortSignal.timeout(60_000))
    } catch (error) {
      this.#o.log(`thaw after the time: ${(error as Error).message}`)
      if (tries < MAX_THAW_TRIES) this.#thawTimer = setTimeout(() => void this.#thawLater(tries + 1), 10_000).unref()
    }
  }

  powerDown(signal: AbortSignal): Promise<void> {
    return this.#ask(signal, (agent) => agent.shutdown('powerdown', { timeout_ms: 5_000, signal }))
  }

  close(): void {
    clearTimeout(this.#thawTimer)
    void this.#client?.then(
      (client) => client.close(),
      () => {},
    )
    this.#client = undefined
  }
}

function agentFault(error: unknown): unknown {
  if (!(error instanceof QmpError)) return error
  const what = error.message.charAt(0).toUpperCase() + error.message.slice(1)
  switch (error.kind) {
    case 'command-failed':
      return fail('agent_failed', `${what}.`, { cause: error })
    case 'timeout':
      return error.command === 'guest-exec' && error.sent
        ? fail('timeout', `${what}.`, { cause: error, effect: 'partial' })
        : fail('agent_silent', `The guest agent did not answer: ${error.message}.`, {
            cause: error,
            effect: error.sent ? 'unknown' : 'none',
            remedy: 'in the guest: systemctl status qemu-guest-agent',
          })
    case 'aborted':
      return fail('cancelled', `${what}.`, { cause: error, effect: error.sent ? 'unknown' : 'none' })
    case 'limit':
      return fail('too_large', `${what}.`, { cause: error })
    case 'protocol':
      return fail('agent_failed', `The guest agent said something that cannot be true: ${error.message}.`, {
        cause: error,
        effect: 'unknown',
      })
    default:
      return fail('agent_silent', `The guest agent cannot be reached: ${error.message}.`, {
        cause: error,
        effect: error.sent ? 'unknown' : 'none',
        remedy: 'is the VM running? wadah vm show NAME',
      })
  }
}
