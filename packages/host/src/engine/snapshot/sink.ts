/** Where QEMU sends its RAM: a socket of ours, whose connection `dd` gets and writes to a file. */
import { spawn } from 'node:child_process'
import type { FileHandle } from 'node:fs/promises'
import { chmod } from 'node:fs/promises'
import { createServer, type Socket } from 'node:net'
import { fail } from '@wadah/api/fault'
import { toolEnv } from '../../system/run.ts'

const CONNECT_MS = 10_000
const CHUNK = '1M'

export type Sink = { path: string; done: Promise<void>; close: () => void }

/** Listens on a socket for one connection, whose bytes `dd` appends to the file; at most `most_bytes`. */
export async function openSink(path: string, file: FileHandle, most_bytes: number): Promise<Sink> {
  const { promise: done, resolve, reject } = Promise.withResolvers<void>()
  done.catch(() => {})
  // Not read here: the connection goes to dd as it is.
  const server = createServer({ pauseOnConnect: true }, (socket: Socket) => {
    server.close()
    clearTimeout(timer)
    const child = spawn(
      'dd',
      [`bs=${CHUNK}`, 'iflag=fullblock,count_bytes', `count=${most_bytes}`, 'oflag=append', 'status=none'],
      {
        stdio: [socket, file.fd, 'ignore'],
        env: toolEnv(),
      },
    )
    child.once('error', reject)
    child.once('exit', (code, signal) =>
      code === 0
        ? resolve()
        : reject(fail('no_room', `RAM could not be written (dd: ${signal ?? `exit code ${code}`}); is the pool full?`)),
    )
    socket.destroy()
  })
  const timer = setTimeout(() => {
    server.close()
    reject(fail('monitor_silent', `QEMU did not connect to save its RAM within ${CONNECT_MS / 1000} s.`))
  }, CONNECT_MS)
  await new Promise<void>((ready, failed) => {
    server.once('error', failed)
    server.listen(path, ready)
  })
  // Who may reach it is said by the folder it lies in.
  await chmod(path, 0o666)
  const close = () => {
    clearTimeout(timer)
    server.close()
  }
  return { path, done, close }
}
