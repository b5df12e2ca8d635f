/** The same QEMU without Wadah: the very argv that Wadah used, spawned by hand, told `cont`. */
import { spawn } from 'node:child_process'
import { chmodSync, chownSync, closeSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createConnection, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'

export type Recipe = { argv: string[]; uid: number; gid: number; groups: string; live: string }

/** What Wadah started: argv and user of a running QEMU, from /proc. */
export function recipeOf(pid: number): Recipe {
  const argv = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').slice(0, -1)
  const status = readFileSync(`/proc/${pid}/status`, 'latin1')
  const id = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(status)?.[1])
  const groups = (/^Groups:[ \t]*(.*)$/m.exec(status)?.[1] ?? '').trim().split(/\s+/).filter(Boolean).join(',')
  const pidfile = argv[argv.indexOf('-pidfile') + 1] ?? ''
  return { argv, uid: id('Uid'), gid: id('Gid'), groups, live: pidfile.replace(/\/qemu\.pid$/, '') }
}

export type Ask = (command?: string, args?: Record<string, unknown>) => Promise<any>
export type Bare = { pid: number; ask: Ask; end(): Promise<void> }

/**
 * Makes the folder before the clock starts; then spawn, `qmp_capabilities`, `cont`, and its answer: RUNNING.
 * @param replace further paths to be exchanged in argv (the disk of a clone)
 */
export async function spawnBare(
  recipe: Recipe,
  folder: string,
  replace: Record<string, string> = {},
  first?: () => Promise<void>,
  /** A file with saved RAM to go on from, as descriptor 4. */
  incoming?: string,
): Promise<[number, Bare]> {
  const live = `${folder}/live`
  mkdirSync(live, { recursive: true })
  chmodSync(folder, 0o711)
  writeFileSync(`${live}/seed`, 'hostname=bare\n', { mode: 0o400 })
  for (const path of [live, `${live}/seed`]) chownSync(path, recipe.uid, recipe.gid)
  chmodSync(live, 0o700)
  const words = recipe.argv.map((word) => {
    let text = word.replaceAll(recipe.live, live)
    for (const [from, to] of Object.entries(replace)) text = text.replaceAll(from, to)
    return text
  })
  const groups = recipe.groups === '' ? '--clear-groups' : `--groups=${recipe.groups}`
  const drop = [
    `--reuid=${recipe.uid}`,
    `--regid=${recipe.gid}`,
    groups,
    '--bounding-set=-all',
    '--inh-caps=-all',
    '--no-new-privs',
    '--',
  ]
  if (incoming !== undefined) words.push('-incoming', 'fd:4')
  const ram = incoming === undefined ? undefined : openSync(incoming, 'r')
  const [serial, log] = [openSync(`${folder}/serial.log`, 'a'), openSync(`${folder}/qemu.log`, 'a')]

  const begun = performance.now()
  await first?.()
  const child = spawn('/usr/bin/setpriv', [...drop, ...words], {
    cwd: '/',
    env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' },
    stdio: ['ignore', log, log, serial, ...(ram === undefined ? [] : [ram])],
  })
  closeSync(serial)
  closeSync(log)
  if (ram !== undefined) closeSync(ram)
  const gone = new Promise<void>((done) => child.once('exit', () => done()))
  const socket = await connect(`${live}/qmp.sock`, () => child.exitCode !== null || child.signalCode !== null)
  const ask = talk(socket)
  await ask()
  await ask('qmp_capabilities')
  while (incoming !== undefined && (await ask('query-status')).status === 'inmigrate') await sleep(1)
  await ask('cont')
  const ms = performance.now() - begun
  return [
    ms,
    {
      pid: child.pid ?? 0,
      ask,
      end: async () => {
        socket.destroy()
        child.kill('SIGKILL')
        await gone
        rmSync(folder, { recursive: true, force: true })
      },
    },
  ]
}

async function connect(path: string, over: () => boolean): Promise<Socket> {
  for (let i = 0; i < 30_000; i++) {
    if (over()) throw new Error(`the bare QEMU ended; see ${path.replace(/live\/.*/, 'qemu.log')}`)
    const socket = await new Promise<Socket | undefined>((done) => {
      const s = createConnection(path)
      s.once('connect', () => done(s))
      s.once('error', () => done(undefined))
    })
    if (socket) return socket
    await sleep(1)
  }
  throw new Error(`nobody listens on ${path}`)
}

/** One command at a time; without one, waits for the greeting. */
function talk(socket: Socket): Ask {
  let rest = ''
  let wake: (() => void) | undefined
  const lines: { QMP?: unknown; return?: unknown; error?: unknown }[] = []
  socket.setEncoding('utf8').on('data', (text) => {
    const parts = (rest + String(text)).split('\n')
    rest = parts.pop() ?? ''
    for (const line of parts) if (line.trim() !== '') lines.push(JSON.parse(line))
    wake?.()
  })
  return async (command, args) => {
    if (command !== undefined)
      socket.write(`${JSON.stringify({ execute: command, ...(args ? { arguments: args } : {}) })}\n`)
    for (;;) {
      const line = lines.shift()
      if (line === undefined) {
        await new Promise<void>((done) => (wake = done))
        continue
      }
      if ('error' in line) throw new Error(`${command}: ${JSON.stringify(line.error)}`)
      if ('return' in line || 'QMP' in line) return line.return ?? line.QMP
    }
  }
}
