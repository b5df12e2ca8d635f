/** Whether a port of this host is free, found by taking it for an instant. */
import { createSocket } from 'node:dgram'
import { createServer } from 'node:net'

/** A port that a program holds on one address is not free on 0.0.0.0 either. */
export async function portFree(protocol: 'tcp' | 'udp', address: string, port: number): Promise<boolean> {
  return protocol === 'tcp' ? await tcpFree(address, port) : await udpFree(address, port)
}

async function tcpFree(address: string, port: number): Promise<boolean> {
  return await new Promise((resolve) => {
    const server = createServer()
    server.once('error', () => resolve(false))
    server.listen({ host: address, port, exclusive: true }, () => server.close(() => resolve(true)))
  })
}

async function udpFree(address: string, port: number): Promise<boolean> {
  return await new Promise((resolve) => {
    const socket = createSocket('udp4')
    socket.once('error', () => resolve(false))
    socket.bind({ address, port, exclusive: true }, () => socket.close(() => resolve(true)))
  })
}
