/** Whether a port of this host is free, found by taking it for an instant. */
import { createSocket } from 'node:dgram'
import { createServer } from 'node:net'
import { fail } from '@wadah/api/fault'

/**
 * A port that a program holds on one address is not free on 0.0.0.0 either.
 * @throws WadahError `forbidden` for one that only root may take
 */
export async function portFree(protocol: 'tcp' | 'udp', address: string, port: number): Promise<boolean> {
  return protocol === 'tcp' ? await tcpFree(address, port) : await udpFree(address, port)
}

async function tcpFree(address: string, port: number): Promise<boolean> {
  return await new Promise((resolve, reject) => {
    const server = createServer()
    server.once('error', taken(port, resolve, reject))
    server.listen({ host: address, port, exclusive: true }, () => server.close(() => resolve(true)))
  })
}

async function udpFree(address: string, port: number): Promise<boolean> {
  return await new Promise((resolve, reject) => {
    const socket = createSocket('udp4')
    socket.once('error', taken(port, resolve, reject))
    socket.bind({ address, port, exclusive: true }, () => socket.close(() => resolve(true)))
  })
}

const taken =
  (port: number, resolve: (free: boolean) => void, reject: (why: Error) => void) => (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EACCES') return resolve(false)
    // ip(7), ip_unprivileged_port_start.
    reject(
      fail('forbidden', `Port ${port} can be taken by root only.`, {
        remedy: 'choose a port from 1024 on, or run wadahd as root',
      }),
    )
  }
