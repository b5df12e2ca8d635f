/** Talking to the guest part (recipes/debian-12/files/usr/lib/wadah/identity): lines over a virtio-serial port. */
import { type Socket, createConnection } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { fail } from '@wadah/api/fault'
import type { Identity } from '@wadah/ports/warm'
import { seedText } from '../plan.ts'

const CONNECT_MS = 5_000
const MAX_LINE = 4096

export type Secrets = { machine_id: string; random: Uint8Array; now_ms: number }

/** What a clone is told. Pure. A value with a line break would forge a line: it can't have one. */
export function identityText(who: Identity, { machine_id, random, now_ms }: Secrets): string {
  const values: Record<string, string> = {
    'instance-id': who.instance_id,
    hostname: who.hostname,
    'machine-id': machine_id,
    mac: who.mac,
    address: who.address,
    gateway: who.gateway,
    dns: who.dns,
    ...(who.domain === undefined ? {} : { domain: who.domain }),
    random: Buffer.from(random).toString('hex'),
    seed: Buffer.from(seedText(who.seed)).toString('hex'),
    time: (now_ms / 1000).toFixed(3),
  }
  return `identity\n${seedText(values)}end\n`
}

/** One line of the guest part at a time. What a guest says is neither long nor trusted. */
export class GuestPart {
  readonly #socket: Socket
  #text = ''
  #wake: (() => void) | undefined
  #closed = false

  private constructor(socket: Socket) {
    this.#socket = socket
    const wake = () => this.#wake?.()
    socket.on('data', (d: Buffer) => {
      this.#text = (this.#text + d.toString('latin1')).slice(-MAX_LINE)
      wake()
    })
    socket.on('error', () => {})
    socket.on('close', () => {
      this.#closed = true
      wake()
    })
  }

  static async connect(path: string): Promise<GuestPart> {
    for (const end = performance.now() + CONNECT_MS; ; ) {
      const socket = createConnection({ path })
      const error = await new Promise<Error | undefined>((resolve) => {
        socket.once('connect', () => resolve(undefined))
        socket.once('error', resolve)
      })
      if (!error) return new GuestPart(socket)
      if (performance.now() > end)
        throw fail('qemu_failed', `QEMU does not open the port of the guest part: ${error.message}`)
      await sleep(5)
    }
  }

  send(text: string): void {
    this.#socket.write(text)
  }

  async line(timeout_ms: number, signal: AbortSignal, what: string): Promise<string> {
    const timeout = AbortSignal.timeout(timeout_ms)
    const limit = AbortSignal.any([signal, timeout])
    const wake = () => this.#wake?.()
    limit.addEventListener('abort', wake)
    try {
      for (;;) {
        const at = this.#text.indexOf('\n')
        if (at >= 0) {
          const line = this.#text.slice(0, at)
          this.#text = this.#text.slice(at + 1)
          return line.replaceAll(/[^\x20-\x7e]/g, '?').slice(0, 200)
        }
        signal.throwIfAborted()
        if (timeout.aborted || this.#closed)
          throw fail(
            'agent_silent',
            `The guest part did not say ${what}${this.#closed ? ' before the guest ended' : ` within ${timeout_ms / 1000} s`}.`,
            {
              remedy: 'the image must hold the guest part of this release: wadah image build RECIPE',
              retryable: false,
            },
          )
        await new Promise<void>((resolve) => (this.#wake = resolve))
      }
    } finally {
      limit.removeEventListener('abort', wake)
    }
  }

  close(): void {
    this.#socket.destroy()
  }
}
