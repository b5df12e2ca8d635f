/** A console of a VM: a one-time ticket, then a WebSocket over a connection that was proved like any other. */
import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import type { Duplex } from 'node:stream'
import WebSocket, { createWebSocketStream } from 'ws'
import type { Api } from './api.ts'

/** `closed`: why it ended, in the daemon's words. */
export type Console = { stream: Duplex; closed: Promise<string> }

type ConsoleBody = { kind: 'serial' | 'vnc'; port?: number }

/** Opens a console as a byte stream. Its end says nothing of the VM: it may have stopped, or the daemon restarted. */
export async function openConsole(api: Api, vm: string, body: ConsoleBody): Promise<Console> {
  const { path } = await api.call(endpoints.vms.console, { params: { vm }, body })
  if (!path.startsWith('/')) throw fail('internal', 'The daemon named no path for the console')
  const socket = await api.dial()
  const ws = new WebSocket(`ws://${api.host}${path}`, {
    createConnection: () => socket,
    perMessageDeflate: false,
    handshakeTimeout: 15_000,
    maxPayload: 16 * 2 ** 20,
    headers: api.authorization(),
  })
  // Made before the handshake: the guest's first bytes may come in the same packet as its answer.
  const closed = new Promise<string>((resolve) =>
    ws.once('close', (code, reason) => resolve(reason.toString() || String(code))),
  )
  const stream = createWebSocketStream(ws)
  await new Promise<void>((resolve, reject) => {
    ws.once('open', resolve)
    ws.once('error', (cause) =>
      reject(fail('unreachable', `The console could not be opened: ${cause.message}`, { cause })),
    )
    ws.once('unexpected-response', (_, response) => {
      response.resume()
      reject(fail('unavailable', `The console could not be opened: HTTP ${response.statusCode}`))
    })
  })
  // The stream of `ws` stays half open when the other side has ended; a console has no use for that.
  stream.once('end', () => stream.destroy())
  // Told through the promise below, or by `closed`.
  stream.on('error', () => {})
  return { stream, closed }
}
