/** One try of a recipe's health check against a guest. A port that opens is not enough where the service can say more. */
import { request } from 'node:http'
import { createConnection } from 'node:net'
import type { Service } from '@wadah/api/schema/vm'

const TRY_TIMEOUT_MS = 5_000

export async function checkService(
  service: Service,
  target: { address: string; port: number },
  signal: AbortSignal,
): Promise<{ ok: boolean; detail: string; took_ms: number }> {
  const begun = performance.now()
  const limit = AbortSignal.any([signal, AbortSignal.timeout(TRY_TIMEOUT_MS)])
  try {
    const detail = await kinds[service.kind](service, target, limit)
    return { ok: true, detail, took_ms: Math.round(performance.now() - begun) }
  } catch (error) {
    const why =
      limit.aborted && !signal.aborted ? `no answer within ${TRY_TIMEOUT_MS / 1000} s` : (error as Error).message
    return {
      ok: false,
      detail: `${service.kind} ${target.address}:${target.port}: ${why}`,
      took_ms: Math.round(performance.now() - begun),
    }
  }
}

type Check = (service: Service, target: { address: string; port: number }, signal: AbortSignal) => Promise<string>

const kinds: Record<Service['kind'], Check> = {
  http: (service, target, signal) => httpStatus(target, service.path ?? '/', 'GET', signal),
  // CUPS answers a GET of a queue with its page.
  ipp: (service, target, signal) =>
    httpStatus(target, `/printers/${encodeURIComponent(service.path ?? '')}`, 'GET', signal),
  smb: (_service, target, signal) => smbNegotiate(target, signal),
  tcp: async (_service, target, signal) => {
    ;(await connect(target, signal)).destroy()
    return 'connected'
  },
}

function httpStatus(
  target: { address: string; port: number },
  path: string,
  method: string,
  signal: AbortSignal,
): Promise<string> {
  return new Promise((resolve, reject) => {
    const req = request({ host: target.address, port: target.port, path, method, signal, agent: false }, (res) => {
      const status = res.statusCode ?? 0
      res.destroy()
      if (status >= 200 && status < 400) resolve(`HTTP ${status}`)
      else reject(new Error(`HTTP ${status}`))
    })
    req.once('error', reject)
    req.end()
  })
}

function connect(target: { address: string; port: number }, signal: AbortSignal) {
  const socket = createConnection({ host: target.address, port: target.port, signal })
  return new Promise<typeof socket>((resolve, reject) => {
    socket.once('connect', () => resolve(socket))
    socket.once('error', reject)
  })
}

/** SMB2 NEGOTIATE (MS-SMB2 2.2.3) with dialect 2.1: any SMB2 header in the answer will do. */
const SMB2_NEGOTIATE = Buffer.concat([
  Buffer.from('00000066', 'hex'),
  Buffer.from('fe534d42400000000000000000000100', 'hex'),
  Buffer.alloc(48),
  Buffer.from('24000100010000007f000000', 'hex'),
  Buffer.alloc(16, 0x57),
  Buffer.alloc(8),
  Buffer.from('1002', 'hex'),
])

async function smbNegotiate(target: { address: string; port: number }, signal: AbortSignal): Promise<string> {
  const socket = await connect(target, signal)
  try {
    return await new Promise((resolve, reject) => {
      let seen = Buffer.alloc(0)
      signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true })
      socket.once('error', reject)
      socket.once('close', () => reject(new Error('the connection was closed')))
      socket.on('data', (chunk: Buffer) => {
        seen = Buffer.concat([seen, chunk])
        if (seen.length < 8) return
        if (seen.subarray(4, 8).equals(Buffer.from('fe534d42', 'hex'))) resolve('SMB2 negotiated')
        else reject(new Error('the answer is not SMB2'))
      })
      socket.write(SMB2_NEGOTIATE)
    })
  } finally {
    socket.destroy()
  }
}
