/** `/v1/console?ticket=…`: a WebSocket with binary frames, passed on to the serial port or VNC server of a VM. */
import type { IncomingMessage } from 'node:http'
import type { Duplex } from 'node:stream'
import { fail, WadahError } from '@wadah/api/fault'
import type { VmService } from '@wadah/cluster/services'
import type { ConsoleStream, ConsoleTarget } from '@wadah/ports/machine'
import type { Clock } from '@wadah/store/clock'
import { WebSocket, WebSocketServer } from 'ws'
import type { Identity } from './access/store.ts'
import { TICKET_MS, type Ticket, Tickets } from './tickets.ts'

/** Codes from 4000 on are free for applications (RFC 6455, 7.4.2). */
export const CLOSE = {
  ended: [1000, 'the console ended'],
  going: [1001, 'the daemon is stopping; the VM runs on'],
  text: [1003, 'only binary frames are taken'],
  failed: [1011, 'the console failed'],
  ticket: [4401, 'the ticket is unknown, used or too old'],
  revoked: [4403, 'the login or token this console was opened with has ended'],
  slow: [4408, 'the client took nothing for too long'],
  many: [4429, 'too many consoles are open'],
  stuck: [4504, 'the guest took nothing for too long'],
} as const

export type ConsoleOptions = {
  vms: Pick<VmService, 'console'>
  clock: Clock
  random: (bytes: number) => Uint8Array
  stillHolds: (identity: Identity) => boolean
  onTrouble: (error: unknown) => void
  /** Consoles of one VM and in all; default 16 and 256. */
  mostOfVm?: number
  most?: number
  ping_ms?: number
}

/** A key press or a paste is small; VNC clients send little. */
const MESSAGE_BYTES_MAX = 1024 * 1024
const HIGH_WATER_BYTES = 256 * 1024
const SLOW_MS = 60_000

/** `held`: nothing is read from the client while the guest takes nothing; no pong either. */
type Open = { ticket: Ticket; alive: boolean; held: boolean }

export class Consoles {
  #o: Required<ConsoleOptions>
  #tickets: Tickets
  #server = new WebSocketServer({
    noServer: true,
    maxPayload: MESSAGE_BYTES_MAX,
    perMessageDeflate: false,
    clientTracking: false,
  })
  #open = new Map<WebSocket, Open>()
  #pinging: (() => void) | undefined

  constructor(options: ConsoleOptions) {
    this.#o = { mostOfVm: 16, most: 256, ping_ms: 30_000, ...options }
    this.#tickets = new Tickets(options.random, () => options.clock.monotonic_ms())
  }

  ticket(
    vm: string,
    target: ConsoleTarget,
    identity: Identity | undefined,
  ): { ticket: string; path: string; expires_at: string } {
    if (!identity) throw fail('unauthenticated', 'A console needs a login.')
    const ticket = this.#tickets.issue(vm, target, identity)
    const expires_at = new Date(this.#o.clock.now_ms() + TICKET_MS).toISOString()
    return { ticket, path: `/v1/console?ticket=${ticket}`, expires_at }
  }

  /** Takes over an upgrade that was found to come from a host and origin of ours. */
  upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    const secret = new URL(request.url ?? '/', 'https://localhost').searchParams.get('ticket') ?? ''
    this.#server.handleUpgrade(request, socket, head, (ws) => {
      ws.on('error', () => ws.terminate())
      // Told by a close code after the handshake: a browser shows its page nothing of a refused handshake.
      const ticket = this.#tickets.redeem(secret)
      if (!ticket || !this.#o.stillHolds(ticket.identity)) return ws.close(...CLOSE.ticket)
      const ofVm = [...this.#open.values()].filter((o) => o.ticket.vm === ticket.vm).length
      if (this.#open.size >= this.#o.most || ofVm >= this.#o.mostOfVm) return ws.close(...CLOSE.many)
      this.#serve(ws, ticket).catch(this.#o.onTrouble)
    })
  }

  async #serve(ws: WebSocket, ticket: Ticket): Promise<void> {
    const entry: Open = { ticket, alive: true, held: false }
    this.#open.set(ws, entry)
    ws.on('pong', () => {
      entry.alive = true
    })
    const closed = new Promise<void>((resolve) => ws.once('close', () => resolve()))
    // What comes before the console is open waits in the socket.
    ws.pause()
    this.#keepPinging()
    let stream: ConsoleStream | undefined
    try {
      stream = await this.#o.vms.console(ticket.vm, ticket.target)
      if (ws.readyState === WebSocket.OPEN) {
        this.#toGuest(ws, stream, entry)
        ws.resume()
        await Promise.race([this.#fromGuest(ws, stream), closed])
        ws.close(...CLOSE.ended)
      }
    } catch (error) {
      const [code, text] = CLOSE.failed
      ws.close(code, error instanceof WadahError ? shorten(error.fault.detail) : text)
      if (!(error instanceof WadahError)) this.#o.onTrouble(error)
    } finally {
      ws.resume()
      stream?.close()
      await Promise.race([closed, this.#after(5000)])
      ws.terminate()
      this.#open.delete(ws)
    }
  }

  /** Reads from the guest no faster than the client takes. */
  async #fromGuest(ws: WebSocket, stream: ConsoleStream): Promise<void> {
    for await (const data of stream.data) {
      if (ws.readyState !== WebSocket.OPEN) return
      const sent = new Promise<void>((resolve) => ws.send(data, { binary: true }, () => resolve()))
      if (ws.bufferedAmount <= HIGH_WATER_BYTES) continue
      const late = new AbortController()
      const slow = await Promise.race([sent.then(() => false), this.#after(SLOW_MS, late.signal).then(() => true)])
      late.abort()
      if (slow) return ws.close(...CLOSE.slow)
    }
  }

  /** While something waits to be taken, no more is read from the client: a guest that does not read fills no memory of ours. */
  #toGuest(ws: WebSocket, stream: ConsoleStream, entry: Open): void {
    let waiting = 0
    let giveUp: (() => void) | undefined
    const leave = ([code, text]: readonly [number, string]) => {
      ws.close(code, text)
      // Its answer to this is all that is still wanted.
      ws.resume()
    }
    ws.once('close', () => giveUp?.())
    ws.on('message', (data: Buffer, isBinary: boolean) => {
      if (ws.readyState !== WebSocket.OPEN) return
      if (!isBinary) return leave(CLOSE.text)
      const taken = stream.write(data)
      if (!(taken instanceof Promise)) return
      waiting += 1
      entry.held = true
      ws.pause()
      giveUp ??= this.#o.clock.timer(() => leave(CLOSE.stuck), SLOW_MS)
      taken.then(
        () => {
          waiting -= 1
          if (waiting > 0) return
          giveUp?.()
          giveUp = undefined
          entry.held = false
          entry.alive = true
          ws.resume()
        },
        () => leave(CLOSE.failed),
      )
    })
  }

  #after(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const cancel = this.#o.clock.timer(resolve, ms)
      signal?.addEventListener('abort', cancel, { once: true })
    })
  }

  /** One timer for all, and none while there is no console. */
  #keepPinging(): void {
    this.#pinging ??= this.#o.clock.timer(() => {
      this.#pinging = undefined
      for (const [ws, entry] of this.#open) {
        if (!this.#o.stillHolds(entry.ticket.identity)) ws.close(...CLOSE.revoked)
        else if (!entry.alive && !entry.held) ws.terminate()
        else {
          entry.alive = false
          ws.ping()
        }
      }
      if (this.#open.size > 0) this.#keepPinging()
    }, this.#o.ping_ms)
  }

  close(): void {
    this.#pinging?.()
    for (const ws of this.#open.keys()) ws.close(...CLOSE.going)
  }
}

/** A close reason has at most 123 bytes. */
function shorten(text: string): string {
  let short = text
  while (Buffer.byteLength(short) > 123) short = short.slice(0, -1)
  return short
}
