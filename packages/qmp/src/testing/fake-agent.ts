import { type Answer, type Call, FakePeer, type Handlers, type PeerOptions, type Step } from './fake-peer.ts'

export type { Answer, Call, Handler, Handlers, Step } from './fake-peer.ts'

export type FakeProgram = (call: { path: string; args: string[]; env: string[]; input: Buffer }) => {
  exit_code?: number
  signal?: number
  stdout?: string | Uint8Array
  stderr?: string | Uint8Array
  /** How many status polls say "not yet". */
  polls?: number
}

export type FakeAgentOptions = PeerOptions & {
  /** Replaces commands of the working agent, or adds some. */
  handlers?: Handlers
  /** What guest-exec runs, by path. */
  programs?: { [path: string]: FakeProgram }
  /** Said as soon as somebody connects: what an agent left in the channel before. */
  leftover?: readonly Step[]
}

/**
 * A scripted guest agent: by default one that works, with files in memory and programs as functions. Faults are handlers
 * (`'guest-ping': { raw: 'garbage\n' }`).
 */
export class FakeAgent extends FakePeer {
  /** The guest's files, by path. */
  readonly files = new Map<string, Buffer>()
  /** Handles that are open now. */
  readonly handles = new Map<number, { path: string; position: number }>()
  frozen = false
  readonly #running = new Map<number, { polls: number; result: ReturnType<FakeProgram> }>()
  readonly #leftover: readonly Step[]
  #next = 1000

  constructor(options: FakeAgentOptions = {}) {
    super({}, options)
    this.#leftover = options.leftover ?? []
    Object.assign(this.handlers, this.#working(options.programs ?? {}), options.handlers)
  }

  protected override opening(): readonly Step[] {
    return this.#leftover
  }

  protected override prefix(call: Call): string | Uint8Array {
    return call.command === 'guest-sync-delimited' ? Buffer.of(0xff) : ''
  }

  protected override unknown(call: Call): Answer {
    return { error: { class: 'CommandNotFound', desc: `The command ${call.command} has not been found` } }
  }

  #working(programs: { [path: string]: FakeProgram }): Handlers {
    const refuse = (desc: string): Answer => ({ error: { class: 'GenericError', desc } })
    const withHandle = (use: (file: { path: string; position: number }, call: Call) => Answer) => (call: Call) => {
      const file = this.handles.get(Number(call.args.handle))
      return file ? use(file, call) : refuse(`handle '${Number(call.args.handle)}' has not been found`)
    }
    return {
      'guest-sync-delimited': ({ args }) => ({ return: args.id }),
      'guest-ping': { return: {} },
      'guest-info': () => ({
        return: {
          version: '7.2.22',
          supported_commands: Object.keys(this.handlers).map((name) => ({
            name,
            enabled: true,
            'success-response': true,
          })),
        },
      }),
      'guest-get-osinfo': { return: { id: 'debian', name: 'Debian GNU/Linux', 'version-id': '12', machine: 'x86_64' } },
      'guest-network-get-interfaces': {
        return: [
          {
            name: 'eth0',
            'hardware-address': '52:54:00:00:00:01',
            'ip-addresses': [{ 'ip-address': '10.0.2.15', 'ip-address-type': 'ipv4', prefix: 24 }],
          },
        ],
      },
      'guest-fsfreeze-status': () => ({ return: this.frozen ? 'frozen' : 'thawed' }),
      'guest-fsfreeze-freeze': () => {
        this.frozen = true
        return { return: 1 }
      },
      'guest-fsfreeze-thaw': () => {
        this.frozen = false
        return { return: 1 }
      },
      'guest-set-time': { return: {} },
      'guest-shutdown': { stall: true },
      'guest-exec': ({ args }) => {
        const path = text(args.path)
        const program = Object.hasOwn(programs, path) ? programs[path] : undefined
        if (!program) return refuse(`Failed to execute child process “${path}” (No such file or directory)`)
        const input = Buffer.from(text(args['input-data']), 'base64')
        const result = program({ path, args: (args.arg as string[]) ?? [], env: (args.env as string[]) ?? [], input })
        this.#next += 1
        this.#running.set(this.#next, { polls: result.polls ?? 0, result })
        return { return: { pid: this.#next } }
      },
      'guest-exec-status': ({ args }) => {
        const running = this.#running.get(Number(args.pid))
        if (!running) return refuse(`PID ${Number(args.pid)} does not exist`)
        running.polls -= 1
        if (running.polls >= 0) return { return: { exited: false } }
        this.#running.delete(Number(args.pid))
        const { exit_code, signal, stdout = '', stderr = '' } = running.result
        return {
          return: {
            exited: true,
            ...(signal === undefined ? { exitcode: exit_code ?? 0 } : { signal }),
            ...(stdout.length > 0 ? { 'out-data': Buffer.from(stdout as Uint8Array).toString('base64') } : {}),
            ...(stderr.length > 0 ? { 'err-data': Buffer.from(stderr as Uint8Array).toString('base64') } : {}),
          },
        }
      },
      'guest-file-open': ({ args }) => {
        const path = text(args.path)
        if (args.mode === 'w') this.files.set(path, Buffer.alloc(0))
        if (!this.files.has(path))
          return refuse(`failed to open file '${path}' (mode: '${text(args.mode)}'): No such file or directory`)
        this.#next += 1
        this.handles.set(this.#next, { path, position: 0 })
        return { return: this.#next }
      },
      'guest-file-close': ({ args }) => {
        return this.handles.delete(Number(args.handle)) ? { return: {} } : refuse('no such handle')
      },
      'guest-file-flush': withHandle(() => ({ return: {} })),
      'guest-file-write': withHandle((file, { args }) => {
        const bytes = Buffer.from(text(args['buf-b64']), 'base64')
        const old = this.files.get(file.path) ?? Buffer.alloc(0)
        this.files.set(file.path, Buffer.concat([old.subarray(0, file.position), bytes]))
        file.position += bytes.length
        return { return: { count: bytes.length, eof: false } }
      }),
      'guest-file-read': withHandle((file, { args }) => {
        const all = this.files.get(file.path) ?? Buffer.alloc(0)
        const bytes = all.subarray(file.position, file.position + Number(args.count))
        file.position += bytes.length
        const eof = bytes.length < Number(args.count)
        return { return: { count: bytes.length, 'buf-b64': bytes.toString('base64'), eof } }
      }),
      'guest-file-seek': withHandle((file, { args }) => {
        const size = this.files.get(file.path)?.length ?? 0
        file.position = Number(args.offset) + (args.whence === 'end' ? size : 0)
        return { return: { position: file.position, eof: false } }
      }),
    }
  }
}

function text(value: unknown): string {
  return typeof value === 'string' ? value : ''
}
