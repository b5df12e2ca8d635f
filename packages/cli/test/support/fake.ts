/** A daemon that says what a test tells it, and the CLI run inside the test against it. */
import { mkdtempSync, rmSync } from 'node:fs'
import http from 'node:http'
import https from 'node:https'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import { run } from '../../src/run.ts'

export type Seen = {
  method: string
  path: string
  query: URLSearchParams
  headers: http.IncomingHttpHeaders
  body: string
}
export type Reply = {
  status?: number
  json?: unknown
  headers?: Record<string, string>
  raw?: (response: http.ServerResponse) => void
}
/** `GET /v1/vms/{vm}` with the parameter as `*`: `GET /v1/vms/*`. */
export type Routes = Record<string, (seen: Seen) => Reply | Promise<Reply>>

export type FakeDaemon = {
  socket: string
  url: string
  seen: Seen[]
  server: http.Server
  folder: string
  close(): Promise<void>
}

export async function fakeDaemon(routes: Routes, tls?: { key: string; cert: string }): Promise<FakeDaemon> {
  const folder = mkdtempSync(join(tmpdir(), 'wadah-cli-test-'))
  const socket = join(folder, 'wadahd.sock')
  const seen: Seen[] = []
  const listener: http.RequestListener = (request, response) => {
    const url = new URL(request.url ?? '/', 'http://x')
    const parts: Buffer[] = []
    request.on('data', (d: Buffer) => parts.push(d))
    request.on('end', () => {
      const one = {
        method: request.method ?? '',
        path: url.pathname,
        query: url.searchParams,
        headers: request.headers,
        body: Buffer.concat(parts).toString('latin1'),
      }
      seen.push(one)
      const key = Object.keys(routes).find((k) => matches(k, `${one.method} ${one.path}`))
      const answer = key === undefined ? problem('not_found', 404, `no ${one.method} ${one.path}`) : routes[key]!(one)
      void Promise.resolve(answer).then((reply) => {
        if (reply.raw) return reply.raw(response)
        response.writeHead(reply.status ?? 200, { 'content-type': 'application/json', ...reply.headers })
        response.end(reply.json === undefined ? '' : JSON.stringify(reply.json))
      })
    })
  }
  const server = tls ? https.createServer(tls, listener) : http.createServer(listener)
  await new Promise<void>((resolve) => (tls ? server.listen(0, '127.0.0.1', resolve) : server.listen(socket, resolve)))
  const url = tls ? `https://127.0.0.1:${(server.address() as AddressInfo).port}` : ''
  return {
    socket,
    url,
    seen,
    server,
    folder,
    async close() {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

function matches(pattern: string, text: string): boolean {
  const a = pattern.split('/')
  const b = text.split('/')
  return a.length === b.length && a.every((part, i) => part === '*' || part === b[i])
}

export function problem(code: string, status: number, detail: string, more: object = {}): Reply {
  return { status, json: { code, status, title: code, detail, effect: 'none', retryable: false, ...more } }
}

export type Result = { code: number; stdout: string; stderr: string; bytes: Buffer }
export type RunOptions = {
  env?: Record<string, string>
  stdin?: string | Buffer
  tty?: boolean
  home?: string
  /** Gets the function that presses Ctrl-C, and the streams. */
  during?: (press: { interrupt: () => void; stdin: PassThrough; stdout: () => string }) => void
}

/** Runs one command line as a process would, without one. */
export async function wadah(argv: string[], options: RunOptions = {}): Promise<Result> {
  const out: Buffer[] = []
  const err: Buffer[] = []
  const stream = (parts: Buffer[]) => {
    const s = new PassThrough()
    s.on('data', (d: Buffer) => parts.push(d))
    return Object.assign(s, options.tty ? { isTTY: true, columns: 100 } : {})
  }
  const stdin = Object.assign(new PassThrough(), options.tty ? { isTTY: true, setRawMode: () => {} } : {})
  if (options.stdin !== undefined) stdin.end(options.stdin)
  else if (!options.tty && !options.during) stdin.end()
  const listeners = new Set<() => void>()
  const ended = run(argv, {
    env: { HOME: '/nonexistent', PATH: process.env['PATH'], ...options.env },
    stdin,
    stdout: stream(out),
    stderr: stream(err),
    now: () => Date.now(),
    onInterrupt(listener) {
      listeners.add(listener)
      return () => listeners.delete(listener)
    },
    home: options.home ?? '/nonexistent',
  })
  options.during?.({
    interrupt: () => [...listeners].forEach((l) => l()),
    stdin,
    stdout: () => Buffer.concat(out).toString(),
  })
  const code = await ended
  const bytes = Buffer.concat(out)
  return { code, stdout: bytes.toString(), stderr: Buffer.concat(err).toString(), bytes }
}
