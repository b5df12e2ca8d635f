import { fail } from '@wadah/api/fault'
import { unlinkSync } from 'node:fs'
import { createServer } from 'node:net'
import type { Cli } from '../../cli.ts'
import { EXIT } from '../../exit.ts'
import type { Api } from '../../net/api.ts'
import type { Console } from '../../net/websocket.ts'
import type { Register } from '../../program.ts'
import { parseInteger } from '../../text/size.ts'

/** Ctrl-], as telnet and virsh have it. */
const ESCAPE = 0x1d

export const console_: Register = (group, cli) => {
  group
    .command('console <vm>')
    .description(cli.t('cmd.vm.console'))
    .option('--vnc <port-or-socket>', cli.t('opt.console.vnc'))
    .option('--port <n>', cli.t('opt.console.port'))
    .action(async (vm: string, options: { vnc?: string; port?: string }) => {
      const port = options.port === undefined ? 0 : parseInteger(options.port, '--port', 0, 3)
      const api = await cli.api()
      if (options.vnc !== undefined) return await forwardVnc(cli, api, vm, options.vnc)
      const { openConsole } = await import('../../net/websocket.ts')
      await attach(cli, await openConsole(api, vm, { kind: 'serial', port }), vm)
    })
}

/** Joins the terminal (or a pipe) to the serial port until Ctrl-], the end of the console, or `--timeout`. */
async function attach(cli: Cli, { stream, closed }: Console, vm: string): Promise<void> {
  const { stdin, stdout } = cli.io
  const tty = stdin.isTTY === true
  const raw = (on: boolean) => stdin.setRawMode?.(on)
  if (tty) {
    cli.out.note(cli.t('console.joined', { name: vm }))
    raw(true)
  }
  let byUser = false
  const leave = () => {
    byUser = true
    stream.destroy()
  }
  const typed = (data: Buffer) => {
    const at = tty ? data.indexOf(ESCAPE) : -1
    if (at < 0) return void stream.write(data)
    if (at > 0) stream.write(data.subarray(0, at))
    leave()
  }
  const off = tty ? () => {} : cli.io.onInterrupt(leave)
  const timeout = () => leave()
  cli.signal.addEventListener('abort', timeout, { once: true })
  try {
    await new Promise<void>((resolve) => {
      stream.on('data', (data: Buffer) => stdout.write(data))
      stream.once('error', () => resolve())
      stream.once('close', resolve)
      stdin.on('data', typed)
      stdin.resume()
    })
  } finally {
    off()
    cli.signal.removeEventListener('abort', timeout)
    stdin.off('data', typed)
    stdin.pause()
    if (tty) raw(false)
    stream.destroy()
  }
  const why = byUser ? '' : await closed
  cli.out.note(`\r\n${cli.t(byUser ? 'console.left' : 'console.ended', { name: vm, why })}`)
  if (!byUser) cli.exit = EXIT.unreachable
}

/** Lends a local port (or socket) to a VNC viewer: each connection gets a ticket of its own. */
async function forwardVnc(cli: Cli, api: Api, vm: string, where: string): Promise<void> {
  const { openConsole } = await import('../../net/websocket.ts')
  // Asked once before a viewer comes, so that a VM that is off is said here.
  ;(await openConsole(api, vm, { kind: 'vnc' })).stream.destroy()
  const port = /^\d+$/.test(where) ? Number(where) : undefined
  if (port !== undefined && port > 65_535) throw fail('invalid', `--vnc: ${where} is not a port`, { field: '--vnc' })
  const server = createServer((viewer) => {
    viewer.on('error', () => viewer.destroy())
    openConsole(api, vm, { kind: 'vnc' }).then(
      ({ stream }) => {
        stream.on('error', () => viewer.destroy()).on('close', () => viewer.destroy())
        viewer.on('close', () => stream.destroy())
        viewer.pipe(stream).pipe(viewer)
      },
      (error: Error) => {
        cli.out.warn(error.message)
        viewer.destroy()
      },
    )
  })
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) =>
      reject(
        fail(
          cause.code === 'EADDRINUSE' ? 'port_taken' : 'invalid',
          `--vnc: ${where} cannot be listened on (${cause.code})`,
          { field: '--vnc', cause },
        ),
      ),
    )
    if (port === undefined) {
      // Only this user may connect: the socket is made under a mask.
      const before = process.umask(0o177)
      server.listen(where, resolve)
      process.umask(before)
    } else server.listen(port, '127.0.0.1', resolve)
  })
  const at = server.address()
  if (typeof at === 'string' || at === null) cli.out.line(cli.t('console.vnc_socket', { path: where }))
  else cli.out.line(cli.t('console.vnc_port', { port: at.port }))
  await new Promise<void>((resolve) => {
    cli.io.onInterrupt(resolve)
    cli.signal.addEventListener('abort', () => resolve(), { once: true })
  })
  server.close()
  if (port === undefined) {
    try {
      unlinkSync(where)
    } catch {
      // Node takes its socket away itself when the server closes.
    }
  }
}
