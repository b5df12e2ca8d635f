/** Warm templates of this machine. What it promises is written in packages/ports/src/warm.ts and docs/instant-clones.md. */
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { type FileHandle, mkdir, open, rename, rm } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { fail } from '@wadah/api/fault'
import { isId } from '@wadah/api/ids'
import type { BootPlan, LaunchRequest, Machine, Running } from '@wadah/ports/machine'
import type { WarmState, WarmTemplates } from '@wadah/ports/warm'
import { errno } from '../../system/files.ts'
import { toolEnv } from '../../system/run.ts'
import { RAM_FD, sockets } from '../argv.ts'
import { VmDirectory } from '../directory.ts'
import { lastWords } from '../launch.ts'
import type { RunningVm } from '../running-vm.ts'
import { openSink } from '../snapshot/sink.ts'
import { loaded } from '../snapshot/restore.ts'
import { GuestPart, identityText } from './identity.ts'
import { memoryFile } from './memory-file.ts'

export type WarmOptions = {
  dataDir: string
  root: boolean
  /** One that runs here, adopted if need be. */
  running: (vm: string) => Promise<RunningVm | undefined>
  machine: Pick<Machine, 'plan' | 'prepare' | 'launch' | 'stop' | 'forget'>
}

/** A server image boots in half a minute without hardware acceleration, on a busy machine in several. */
const READY_MS = 600_000
/** Setting a name, an address and the clock is a moment's work; a machine may be very busy. */
const IDENTITY_MS = 20_000
const SAVE_MS = 60_000
/** Devices; RAM is not in it. */
const MOST_STATE_BYTES = 256 * 2 ** 20
const RANDOM_BYTES = 64

export class HostWarm implements WarmTemplates {
  readonly #o: WarmOptions
  /** Of templates that run, by VM. */
  readonly #making = new Map<string, FileHandle>()
  /** Sealed, by image: held as long as the image is warm, so that the next clone need not read it. */
  readonly #memory = new Map<string, Promise<FileHandle>>()

  constructor(options: WarmOptions) {
    this.#o = options
  }

  #folder(image: string): string {
    if (!isId(image)) throw fail('internal', `not an id: ${image}`)
    return `${this.#o.dataDir}/images/${image}/warm`
  }
  stateFile(image: string): string {
    return `${this.#folder(image)}/state`
  }

  async make(
    image: string,
    request: LaunchRequest,
    signal: AbortSignal,
    log: (line: string) => void,
  ): Promise<WarmState> {
    const { vm } = request
    await this.#o.machine.forget(vm)
    await this.drop(image)
    const folder = this.#folder(image)
    await mkdir(folder, { recursive: true, mode: 0o700 })
    try {
      const plan = await this.#o.machine.plan({ ...request, template: image })
      await this.#o.machine.prepare(plan, signal)
      await this.#o.machine.launch(plan, 'fresh', signal)
      const running = await this.#o.running(vm)
      if (!running) throw fail('qemu_failed', 'The template ended right after its start.')
      log('it boots, with its network down')
      const part = await GuestPart.connect(sockets(new VmDirectory(this.#o.dataDir, vm).live).identity)
      try {
        const said = await Promise.race([
          part.line(READY_MS, signal, 'that it is ready'),
          running.gone.then(() => 'ended'),
        ])
        if (said !== 'ready 1')
          throw fail('wrong_state', `The guest part of the template said "${said}".`, { retryable: false })
        log('its services run; saving it')
        return await this.#save(running, vm, folder, signal)
      } finally {
        part.close()
      }
    } catch (error) {
      await this.#o.machine.forget(vm).catch(() => {})
      await this.drop(image).catch(() => {})
      throw error
    } finally {
      await this.#making.get(vm)?.close()
      this.#making.delete(vm)
    }
  }

  async #save(running: RunningVm, vm: string, folder: string, signal: AbortSignal): Promise<WarmState> {
    const memory = this.#making.get(vm)
    if (!memory) throw fail('internal', `no memory file of ${vm}`)
    await running.execute('stop')
    await ignoreShared(running, true)
    const directory = new VmDirectory(this.#o.dataDir, vm)
    await directory.makeTransfer(this.#o.root ? running.live.uid : null)
    const size = running.record.memory.mib * 2 ** 20
    const state = await open(`${folder}/state.part`, 'wx', 0o600)
    const ram = await open(`${folder}/ram.part`, 'wx', 0o600)
    try {
      const sink = await openSink(`${directory.transfer}/ram.sock`, state, MOST_STATE_BYTES)
      try {
        await running.execute('migrate', { uri: `unix:${sink.path}` })
        await migrated(running, signal)
        await sink.done
      } finally {
        sink.close()
      }
      await copySparse(memory, ram)
      await ram.truncate(size)
      const ram_bytes = (await ram.stat()).blocks * 512
      for (const file of [state, ram]) {
        await file.chmod(0o400)
        await file.datasync()
      }
      const { qemu_version } = running.live
      const boot = structuredClone(running.record)
      await this.#o.machine.stop(vm)
      await this.#o.machine.forget(vm)
      await rename(`${folder}/ram.part`, `${folder}/ram`)
      await rename(`${folder}/state.part`, `${folder}/state`)
      return { boot, qemu_version, ram_bytes }
    } finally {
      await Promise.all([state.close(), ram.close()])
    }
  }

  async drop(image: string): Promise<void> {
    const memory = this.#memory.get(image)
    this.#memory.delete(image)
    await memory?.then((m) => m.close()).catch(() => {})
    await rm(this.#folder(image), { recursive: true, force: true })
  }

  async close(): Promise<void> {
    for (const memory of [...this.#memory.values()]) await memory.then((m) => m.close()).catch(() => {})
    this.#memory.clear()
  }

  async whole(vm: string): Promise<boolean> {
    const running = await this.#o.running(vm)
    if (!running) return false
    if (!running.isBeginning) return true
    await this.#o.machine.stop(vm)
    return false
  }

  async connect(vm: string): Promise<void> {
    const running = await this.#o.running(vm)
    if (!running) throw fail('wrong_state', 'The clone does not run any more.', { retryable: false })
    await setLinks(running, true)
    if (running.live.stranger) await running.noteItself()
  }

  /** What QEMU is to map as its RAM. */
  async memory(plan: BootPlan): Promise<FileHandle | undefined> {
    const { warm } = plan.local
    if (!warm) return undefined
    const bytes = plan.record.memory.mib * 2 ** 20
    if (warm.share) {
      const file = await memoryFile(bytes)
      this.#making.set(plan.record.vm, file)
      return file
    }
    let memory = this.#memory.get(warm.image)
    if (!memory) {
      memory = memoryFile(bytes, `${this.#folder(warm.image)}/ram`)
      this.#memory.set(warm.image, memory)
      memory.catch(() => this.#memory.delete(warm.image))
    }
    return memory
  }

  /** From the start of QEMU to a guest that runs; of a clone, to one that is itself. Its network stays down. */
  async begin(running: RunningVm, plan: BootPlan, signal: AbortSignal): Promise<void> {
    const { warm } = plan.local
    if (warm?.identity) {
      await ignoreShared(running, true)
      await running.execute('migrate-incoming', { uri: `fd:${RAM_FD}` })
      await loaded(running, signal).catch(async (error: unknown) => {
        if (!running.isGone) throw error
        const { qemuLog } = new VmDirectory(this.#o.dataDir, running.vm)
        throw await lastWords(qemuLog, 'QEMU could not go on from the template', error)
      })
    }
    // Snapshots of a clone hold all of its RAM, and QEMU refuses to read what was saved with other capabilities.
    if (warm?.identity) await ignoreShared(running, false)
    await setLinks(running, false)
    if (!warm?.identity) return void (await running.execute('cont'))
    const part = await GuestPart.connect(sockets(plan.local.directory).identity)
    try {
      await running.execute('cont')
      const secrets = { machine_id: machineId(), random: randomBytes(RANDOM_BYTES), now_ms: Date.now() }
      part.send(identityText(warm.identity, secrets))
      const said = await Promise.race([
        part.line(IDENTITY_MS, signal, 'that the clone has become itself'),
        running.gone.then(() => 'the clone ended'),
      ])
      if (said !== 'done')
        throw fail('wrong_state', `The clone did not become itself: ${said}. Nothing of it got out.`, {
          retryable: false,
        })
    } finally {
      part.close()
    }
  }
}

async function setLinks(running: RunningVm, up: boolean): Promise<void> {
  for (const { id: name, kind } of running.record.devices)
    if (kind === 'nic') await running.execute('set_link', { name, up })
}

/** A random (version 4) UUID without hyphens, as machine-id(5) asks for. */
function machineId(): string {
  const id = randomBytes(16)
  id[6] = ((id[6] ?? 0) & 0x0f) | 0x40
  id[8] = ((id[8] ?? 0) & 0x3f) | 0x80
  return id.toString('hex')
}

/** RAM that lies in a shared memory file is not sent. */
async function ignoreShared(running: Running, state: boolean): Promise<void> {
  const capabilities = [{ capability: 'x-ignore-shared', state }]
  await running.execute('migrate-set-capabilities', { capabilities })
}

async function migrated(running: Running, signal: AbortSignal): Promise<void> {
  for (const end = performance.now() + SAVE_MS; ; ) {
    const info = (await running.execute('query-migrate')) as { status?: string; 'error-desc'?: string }
    if (info.status === 'completed') return
    if (info.status === 'failed' || info.status === 'cancelled')
      throw fail('qemu_failed', `QEMU could not save the template: ${info['error-desc'] ?? info.status}.`)
    if (performance.now() > end) throw fail('timeout', 'QEMU did not save the template in time.')
    await sleep(20, undefined, { signal })
  }
}

async function copySparse(from: FileHandle, to: FileHandle): Promise<void> {
  const child = spawn('dd', ['bs=64K', 'conv=sparse', 'status=none'], {
    stdio: [from.fd, to.fd, 'ignore'],
    env: toolEnv(),
  })
  const code = await new Promise<number | string>((resolve) => {
    child.once('error', (error) => resolve(errno(error)))
    child.once('exit', (c, signal) => resolve(c ?? signal ?? 'unknown'))
  })
  if (code !== 0) throw fail('no_room', `RAM of the template could not be written (dd: ${code}); is the disk full?`)
}
