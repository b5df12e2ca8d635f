/** What every command gets: options, words, output, and the way to the daemon. */
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { fail } from '@wadah/api/fault'
import type { Api } from './net/api.ts'
import { chooseLanguage, type Language, type Translate, translator } from './messages/catalogue.ts'
import { Output, type Tty } from './out/output.ts'
import { parseSeconds } from './text/size.ts'

export type GlobalOptions = {
  server?: string
  socket?: string
  token?: string
  tokenFile?: string
  fingerprint?: string
  json?: boolean
  quiet?: boolean
  lang?: string
  color?: boolean
  wait?: boolean
  timeout?: string
}

export type Input = Readable & { isTTY?: boolean; setRawMode?: (raw: boolean) => unknown }
/** The world around the program; tests put their own in. */
export type Io = {
  env: Record<string, string | undefined>
  stdin: Input
  stdout: Tty
  stderr: Tty
  /** Calls `listener` on Ctrl-C instead of ending; returns how to take that back. */
  onInterrupt(listener: () => void): () => void
  now(): number
  /** Where bin/ is; commands that start the daemon need it. */
  home: string
}

export class Cli {
  readonly io: Io
  /** Set before a command runs; `exit` is what the process returns in the end. */
  options: GlobalOptions = {}
  exit = 0
  language: Language
  t: Translate
  out: Output
  #signal: AbortSignal | undefined

  constructor(io: Io) {
    this.io = io
    this.language = chooseLanguage(undefined, io.env)
    this.t = translator(this.language)
    this.out = this.#output({})
  }

  /** Takes over what was parsed. */
  configure(options: GlobalOptions): void {
    if (options.lang !== undefined && !['en', 'id'].includes(options.lang.slice(0, 2))) {
      throw fail('invalid', `--lang: "${options.lang}" is not known; there are en and id`, { field: '--lang' })
    }
    this.options = options
    this.language = chooseLanguage(options.lang, this.io.env)
    this.t = translator(this.language)
    this.out = this.#output(options)
  }

  #output(options: GlobalOptions): Output {
    const { env, stdout, stderr } = this.io
    return new Output({
      stdout,
      stderr,
      json: options.json ?? false,
      quiet: options.quiet ?? false,
      color: options.color !== false && !env['NO_COLOR'] && env['TERM'] !== 'dumb',
    })
  }

  get waits(): boolean {
    return this.options.wait !== false
  }
  /** `--timeout` in seconds. */
  get timeout_s(): number | undefined {
    return this.options.timeout === undefined ? undefined : parseSeconds(this.options.timeout, '--timeout')
  }
  /** Aborts when `--timeout` is over. */
  get signal(): AbortSignal {
    const timeout_s = this.timeout_s
    this.#signal ??=
      timeout_s === undefined ? new AbortController().signal : AbortSignal.timeout(Math.ceil(timeout_s * 1000))
    return this.#signal
  }

  /** Folder of what this user's CLI remembers. */
  get configDir(): string {
    const { env } = this.io
    return join(env['XDG_CONFIG_HOME'] || join(env['HOME'] || homedir(), '.config'), 'wadah')
  }

  /** The daemon this command talks to. `socket` names another one than the options do (`wadah up`, `wadah demo`). */
  async api(to: { socket?: string; remedy?: string } = {}): Promise<Api> {
    const [{ Api }, { chooseTarget, describeTarget }, { KnownServers, parseFingerprint }, { storedToken }] =
      await Promise.all([
        import('./net/api.ts'),
        import('./net/target.ts'),
        import('./net/known-servers.ts'),
        import('./net/credentials.ts'),
      ])
    const target =
      to.socket === undefined
        ? chooseTarget(this.options, this.io.env, existsSync, process.getuid?.() ?? 0)
        : ({ kind: 'socket', path: to.socket } as const)
    const known = new KnownServers(join(this.configDir, 'known_servers'))
    const pinned = this.options.fingerprint ?? this.io.env['WADAH_FINGERPRINT']
    const token =
      (await this.#token()) ??
      (target.kind === 'url' ? await storedToken(this.configDir, describeTarget(target)) : undefined)
    return new Api({
      target,
      token: to.socket === undefined ? token : undefined,
      language: this.language,
      signal: this.signal,
      remedy:
        to.remedy ?? (target.kind === 'socket' && target.path.includes('/wadah-demo/') ? 'wadah demo up' : 'wadah up'),
      trust: {
        pinned: pinned === undefined ? undefined : parseFingerprint(pinned),
        remembered: (server) => known.get(server),
        remember: async (server, fingerprint) => {
          if (!(await known.add(server, fingerprint))) return
          this.out.note(this.t('net.first_seen', { server, fingerprint, file: known.file }))
        },
      },
    })
  }

  async #token(): Promise<string | undefined> {
    const { token, tokenFile } = this.options
    if (token !== undefined && tokenFile !== undefined) {
      throw fail('invalid', '--token and --token-file cannot be given together')
    }
    if (token !== undefined) return checkToken(token, '--token')
    if (tokenFile !== undefined) return checkToken((await readSmall(tokenFile, '--token-file')).trim(), '--token-file')
    const fromEnv = this.io.env['WADAH_TOKEN']
    return fromEnv ? checkToken(fromEnv, 'WADAH_TOKEN') : undefined
  }
}

function checkToken(token: string, what: string): string {
  if (!/^[\x21-\x7e]{1,512}$/.test(token)) {
    throw fail('invalid', `${what}: that is not a token; make one with: wadah token create NAME`, { field: what })
  }
  return token
}

/** A small file that an option names. */
export async function readSmall(file: string, what: string, limit = 1024 * 1024): Promise<string> {
  try {
    const data = await readFile(file === '-' ? '/dev/stdin' : file)
    if (data.length > limit) throw fail('too_large', `${what}: ${file} is larger than ${limit} bytes`, { field: what })
    return data.toString('utf8')
  } catch (error) {
    if (error instanceof Error && error.name === 'WadahError') throw error
    throw fail('invalid', `${what}: ${file} cannot be read (${(error as NodeJS.ErrnoException).code ?? 'error'})`, {
      field: what,
      cause: error,
    })
  }
}
