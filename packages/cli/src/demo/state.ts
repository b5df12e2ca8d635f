/** The demo's own small file, written whole after every step. */
import { randomInt } from 'node:crypto'
import { mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fail } from '@wadah/api/fault'
import { IPV4_PATTERN } from '@wadah/api/schema/common'
import type { Cli } from '../cli.ts'
import { type Instance, instanceOf } from '../local/instance.ts'
import { answers, findDaemon } from '../local/daemon.ts'
import { parseListen } from '../local/listen.ts'
import { freePort, portFree } from '../local/ports.ts'
import { replaceFile } from '../net/known-servers.ts'
import { DEMO_FIRST_LISTEN_PORT, DEMO_INSTANCE, DEMO_USER, type DemoState, parseState } from './plan.ts'

// Without characters that look alike, since people will type it.
const LETTERS = 'abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789'

/** WADAH_DEMO_INSTANCE makes one beside the usual demo; WADAH_DEMO_DATA and WADAH_DEMO_SOCKET put its files elsewhere. */
export function demoInstance(cli: Cli): Instance {
  const { env } = cli.io
  return instanceOf(env['WADAH_DEMO_INSTANCE'] || DEMO_INSTANCE, {
    uid: process.getuid?.() ?? 0,
    env,
    data: env['WADAH_DEMO_DATA'],
    socket: env['WADAH_DEMO_SOCKET'],
  })
}

const fileOf = (instance: Instance) => join(instance.data, 'demo.json')

export async function loadState(instance: Instance): Promise<DemoState | undefined> {
  try {
    return parseState(await readFile(fileOf(instance), 'utf8'))
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined
    throw fail('forbidden', `${fileOf(instance)} cannot be read (${code})`, {
      remedy: 'sudo wadah demo …',
      cause: error,
    })
  }
}

export async function saveState(instance: Instance, state: DemoState): Promise<void> {
  await replaceFile(fileOf(instance), `${JSON.stringify(state, null, 2)}\n`)
}

/** What is there already, or a fresh state with a random password and a free port for the API. */
export async function ensureState(cli: Cli, instance: Instance): Promise<DemoState> {
  const had = await loadState(instance)
  if (had) return await withFreeListen(cli, instance, had)
  const publish_address = cli.io.env['WADAH_DEMO_LISTEN'] || '127.0.0.1'
  if (!new RegExp(IPV4_PATTERN).test(publish_address)) {
    throw fail(
      'invalid',
      `WADAH_DEMO_LISTEN: "${publish_address}" is not an IPv4 address of this host; 0.0.0.0 is all of them`,
    )
  }
  const password = Array.from({ length: 16 }, () => LETTERS[randomInt(LETTERS.length)]).join('')
  const state: DemoState = {
    schema: 1,
    listen: await freeListen(),
    publish_address,
    credentials: { user: DEMO_USER, password },
    servers: {},
  }
  await mkdir(instance.data, { recursive: true, mode: 0o711 })
  await saveState(instance, state)
  return state
}

async function freeListen(): Promise<string> {
  const port = await freePort('127.0.0.1', DEMO_FIRST_LISTEN_PORT)
  if (port === undefined) throw fail('port_taken', `No port from ${DEMO_FIRST_LISTEN_PORT} up is free on 127.0.0.1`)
  return `127.0.0.1:${port}`
}

/** While the daemon was down somebody else may have taken its port. */
async function withFreeListen(cli: Cli, instance: Instance, state: DemoState): Promise<DemoState> {
  if ((await findDaemon(instance)) || (await answers(cli, instance)) !== undefined) return state
  const { host, port } = parseListen(state.listen)
  if (!(await portFree(host, port))) {
    state.listen = await freeListen()
    await saveState(instance, state)
  }
  return state
}
