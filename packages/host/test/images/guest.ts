import { type ChildProcess, spawn } from 'node:child_process'
import { mkdir, mkdtemp, readFile, rm } from 'node:fs/promises'
import { connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'

/** Where system tests share downloads and built guests. */
export const cacheDir = process.env['WADAH_TEST_CACHE'] ?? resolve(import.meta.dirname, '../../../../.cache')

export async function tempDir(): Promise<{ path: string; [Symbol.asyncDispose](): Promise<void> }> {
  const path = await mkdtemp(join(tmpdir(), 'wadah-images-'))
  await mkdir(path, { recursive: true })
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) }
}

export async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
  const address = server.address()
  await new Promise((done) => server.close(done))
  if (address === null || typeof address === 'string') throw new Error('no port')
  return address.port
}

/** A bare QEMU for tests of images: serial port to a file, QMP on a socket, killed when disposed. */
export class TestGuest {
  readonly process: ChildProcess
  readonly dir: string
  private stderr = ''
  private readonly exited: Promise<number | null>

  constructor(dir: string, args: readonly string[]) {
    this.dir = dir
    this.process = spawn(
      'qemu-system-x86_64',
      [
        ...'-nodefaults -no-user-config -display none -M pc-q35-7.2 -accel tcg -device virtio-rng-pci'.split(' '),
        ...['-qmp', `unix:${dir}/qmp,server=on,wait=off`],
        ...['-chardev', `socket,id=ser,path=${dir}/serial,server=on,wait=off,logfile=${dir}/serial.log`],
        ...['-serial', 'chardev:ser'],
        ...args,
      ],
      { stdio: ['ignore', 'ignore', 'pipe'] },
    )
    this.process.stderr?.on('data', (d) => {
      this.stderr += d
    })
    this.exited = new Promise((done) => {
      this.process.once('exit', (code) => done(code))
      this.process.once('error', () => done(null))
    })
  }

  async serial(): Promise<string> {
    return readFile(join(this.dir, 'serial.log'), 'utf8').catch(() => '')
  }

  /** Wait until `check` gives something; fails with the end of the serial log. */
  async until<T>(what: string, check: () => Promise<T | undefined | false>, limit_ms = 150_000): Promise<T> {
    const end = Date.now() + limit_ms
    for (;;) {
      const got = await check().catch(() => undefined)
      if (got !== undefined && got !== false) return got
      if (Date.now() > end || this.process.exitCode !== null)
        throw new Error(`${what}: never happened. ${this.stderr} Serial log:\n${(await this.serial()).slice(-3000)}`)
      await new Promise((r) => setTimeout(r, 100))
    }
  }

  /** Wait for a text on the serial port. */
  async sees(text: string | RegExp, limit_ms?: number): Promise<string> {
    return this.until(
      `serial output ${text}`,
      async () => {
        const log = await this.serial()
        return (typeof text === 'string' ? log.includes(text) : text.test(log)) && log
      },
      limit_ms,
    )
  }

  /** Type a line on the serial port. */
  async type(line: string): Promise<void> {
    await new Promise<void>((done, failed) => {
      const socket = connect(join(this.dir, 'serial'), () => socket.end(`${line}\n`))
      // What the guest prints is in the log file; it only has to be read here so that the socket can close.
      socket.resume()
      socket.once('close', () => done())
      socket.once('error', failed)
    })
  }

  /** One QMP command without an answer worth reading. */
  async qmp(execute: string): Promise<void> {
    await new Promise<void>((done, failed) => {
      const socket = connect(join(this.dir, 'qmp'))
      let answers = 0
      socket.on('data', (d) => {
        answers += String(d).split('"return"').length - 1
        if (answers >= 2) socket.destroy()
      })
      socket.once('close', () => done())
      socket.once('error', failed)
      socket.write(`{"execute":"qmp_capabilities"}{"execute":"${execute}"}`)
    })
  }

  async exit(limit_ms: number): Promise<number | null> {
    const timer = setTimeout(() => this.process.kill('SIGKILL'), limit_ms)
    const code = await this.exited
    clearTimeout(timer)
    return code
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.process.kill('SIGKILL')
    await this.exited
  }
}

/** GET with a deadline; undefined while the server is not there yet. */
export async function get(url: string): Promise<{ status: number; text: string } | undefined> {
  const answer = await fetch(url, { signal: AbortSignal.timeout(5000) })
  return { status: answer.status, text: await answer.text() }
}
