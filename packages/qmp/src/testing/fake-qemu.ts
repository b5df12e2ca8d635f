import { type Answer, type Call, FakePeer, type Handlers, type PeerOptions, type Step } from './fake-peer.ts'

export type { Answer, Call, Handler, Handlers, Step } from './fake-peer.ts'

export type FakeQemuOptions = PeerOptions & {
  /** Commands and what they do. `qmp_capabilities`, `query-status` and `quit` work unless replaced. */
  handlers?: Handlers
  /** What is said on connecting: QEMU 7.2's greeting by default, `[]` for silence, anything else to lie. */
  greeting?: readonly Step[]
}

export const GREETING = {
  QMP: { version: { qemu: { micro: 22, minor: 2, major: 7 }, package: 'fake' }, capabilities: ['oob'] },
}

const WORKING: Handlers = {
  qmp_capabilities: { return: {} },
  'query-status': { return: { status: 'running', singlestep: false, running: true } },
  quit: [{ return: {} }, { event: 'SHUTDOWN', data: { guest: false, reason: 'host-qmp-quit' } }, { drop: true }],
}

/**
 * A scripted QEMU monitor for tests of what cannot be provoked for real. Data for the simple, functions for the rest:
 *
 *   const qemu = new FakeQemu({ handlers: { stop: [{ return: {} }, { event: 'STOP' }] } })
 *   const qmp = await attachQmp(qemu.stream())                          // in memory
 *   const qmp = await connectQmp({ path: (await qemu.listen()).path })  // over a UNIX socket
 */
export class FakeQemu extends FakePeer {
  readonly #greeting: readonly Step[]

  constructor(options: FakeQemuOptions = {}) {
    super({ ...WORKING, ...options.handlers }, options)
    this.#greeting = options.greeting ?? [{ raw: `${JSON.stringify(GREETING)}\r\n` }]
  }

  /** Sends an event to whoever is connected. */
  emit(event: string, data: object = {}): void {
    this.say({ event, data })
  }

  protected override opening(): readonly Step[] {
    return this.#greeting
  }

  protected override unknown(call: Call): Answer {
    return { error: { class: 'CommandNotFound', desc: `The command ${call.command} has not been found` } }
  }
}
