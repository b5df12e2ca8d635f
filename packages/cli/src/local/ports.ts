/** Free TCP ports. */
import { createServer } from 'node:net'

/** Whether a port can be listened on now. */
export async function portFree(address: string, port: number): Promise<boolean> {
  return await new Promise((resolve) => {
    const server = createServer()
    server.once('error', () => resolve(false))
    server.listen({ host: address, port, exclusive: true }, () => server.close(() => resolve(true)))
  })
}

/** The first free port from `from` up that is not among `taken`; undefined when there is none within 200. */
export async function freePort(
  address: string,
  from: number,
  taken: readonly number[] = [],
): Promise<number | undefined> {
  for (let port = from; port < Math.min(from + 200, 65_536); port += 1) {
    if (!taken.includes(port) && (await portFree(address, port))) return port
  }
  return undefined
}
