/**
 * A VM's folder on this host:
 *
 *   vms/<id>/            root, 0711: boot.json, live.json, serial.log, qemu.log, tpm.log, given.json (0600)
 *   vms/<id>/live/       the VM's uid, 0700: sockets, pid file, seed; made anew at each start
 *   vms/<id>/state/      the VM's uid, 0700: what is the machine's own and stays, UEFI variables, the TPM
 *   vms/<id>/kept/<snapshot>/state/   root, 0700: the same as it was when a snapshot was taken
 *   vms/<id>/move/       root and the VM's group, 0710: keys of one move, only until QEMU has read them
 *   vms/<id>/transfer/   root and the VM's group, 0710: a socket through which RAM is saved, only as long as that takes
 *
 * What the daemon trusts lies where an escaped QEMU cannot write.
 */
import { constants } from 'node:fs'
import { chmod, chown, lchown, lstat, mkdir, open, readFile, readdir, rename, rm } from 'node:fs/promises'
import { isId } from '@wadah/api/ids'
import { errno, ignoreMissing } from '../system/files.ts'
import type { BootRecord } from '@wadah/ports/machine'
import { cloudSeedPath } from './argv.ts'
import type { ProcessId } from './process.ts'

/** How this host started it: what a restarted daemon needs to adopt it. */
export type LiveRecord = {
  schema: 1
  vm: string
  epoch: number
  uid: number
  qemu: ProcessId
  /** Its swtpm. */
  tpm?: ProcessId
  accelerator: 'kvm' | 'tcg'
  qemu_version: string
  taps: string[]
  pools: string[]
  started_at_ms: number
  paused_by?: 'user' | 'job'
  /** It goes on from saved RAM, and has not done so yet. */
  loading?: true
  /** An instant clone that may run, and is still the one its template was. */
  stranger?: true
  /** It is on its way: from here, or it has not yet said `running` here. */
  moving?: { job: string; role: 'leaving' | 'arriving'; paused?: true }
  /** It came paused from another host: QEMU takes its disks when it goes on. */
  inactive?: true
  /** Its file systems are frozen, and thawed at this time at the latest. */
  thaw_at_ms?: number
}

export class VmDirectory {
  readonly root: string
  readonly live: string
  readonly state: string
  readonly transfer: string
  readonly move: string
  /** Where QEMU listens for the rest of a post-copy whose connection broke. */
  readonly recover: string
  readonly serialLog: string
  readonly qemuLog: string
  readonly tpmLog: string
  #writing: Promise<void> = Promise.resolve()

  constructor(dataDir: string, vm: string, within = 'vms') {
    if (!isId(vm)) throw new Error(`not an id: ${vm}`)
    this.root = `${dataDir}/${within}/${vm}`
    this.live = `${this.root}/live`
    this.state = `${this.root}/state`
    this.transfer = `${this.root}/transfer`
    this.move = `${this.root}/move`
    this.recover = `${this.live}/recover`
    this.serialLog = `${this.root}/serial.log`
    this.qemuLog = `${this.root}/qemu.log`
    this.tpmLog = `${this.root}/tpm.log`
  }

  /** The folder of what a snapshot keeps. */
  kept(snapshot: string): VmDirectory {
    return new VmDirectory(this.root, snapshot, 'kept')
  }

  static async list(dataDir: string): Promise<string[]> {
    return (await readdir(`${dataDir}/vms`).catch(() => [] as string[])).filter(isId)
  }

  /** Makes the folder of what stays; done twice is done once. Call it only while no QEMU of this VM runs. */
  async makeState(uid: number | null): Promise<void> {
    await mkdir(this.root, { recursive: true, mode: 0o711 })
    await mkdir(this.state, { mode: 0o700 }).catch((error: unknown) => {
      if (errno(error) !== 'EEXIST') throw error
    })
    // Not only when it was made just now: a crash may have come between.
    if (uid !== null && (await lstat(this.state)).uid !== uid) await lchown(this.state, uid, uid)
  }

  /** Makes both folders, empty of what an earlier QEMU left. `uid` null: the daemon's own user. */
  async make(uid: number | null): Promise<void> {
    await mkdir(this.root, { recursive: true, mode: 0o711 })
    await chmod(this.root, 0o711)
    await this.dropLive()
    await mkdir(this.live, { mode: 0o700 })
    if (uid !== null) await chown(this.live, uid, uid)
  }

  /** The seed may hold a password: it is there only until QEMU has read it. */
  async writeSeed(text: string, uid: number | null): Promise<void> {
    await this.#give(`${this.live}/seed`, text, uid)
  }
  /** The disk for cloud-init: in a folder that only QEMU enters, made anew at each start. */
  async writeCloudSeed(image: Uint8Array, uid: number | null): Promise<void> {
    await this.#give(cloudSeedPath(this.live), image, uid)
  }
  async #give(path: string, content: string | Uint8Array, uid: number | null): Promise<void> {
    const file = await open(
      path,
      constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW,
      0o400,
    )
    try {
      await file.writeFile(content)
      if (uid !== null) await file.chown(uid, uid)
    } finally {
      await file.close()
    }
  }
  async dropSeed(): Promise<void> {
    await rm(`${this.live}/seed`, { force: true })
  }

  async dropLive(): Promise<void> {
    const stat = await lstat(this.live).catch(() => undefined)
    if (!stat) return
    // Whoever lived in it may have left links: rm does not follow them, and from here on it is not theirs.
    await lchown(this.live, process.getuid?.() ?? 0, process.getgid?.() ?? 0).catch(() => {})
    await rm(this.live, { recursive: true, force: true })
  }

  /** Only root and the VM's own group pass: QEMU connects to what lies in it, and nobody else can. */
  async makeTransfer(uid: number | null): Promise<void> {
    await this.#makePassage(this.transfer, uid)
  }
  async #makePassage(path: string, uid: number | null): Promise<void> {
    await rm(path, { recursive: true, force: true })
    await mkdir(path, { mode: 0o700 })
    if (uid === null) return
    await lchown(path, process.getuid?.() ?? 0, uid)
    await chmod(path, 0o710)
  }

  /** Key and certificates of one move, readable by the VM's user alone; they go as soon as QEMU has read them. */
  async writeMove(files: Record<string, string>, uid: number | null): Promise<void> {
    await this.#makePassage(this.move, uid)
    for (const [name, text] of Object.entries(files)) await this.#give(`${this.move}/${name}`, text, uid)
  }
  async dropMove(): Promise<void> {
    await rm(this.move, { recursive: true, force: true })
  }

  async writeBoot(record: BootRecord): Promise<void> {
    await this.#write('boot.json', record)
  }
  async readBoot(): Promise<BootRecord | undefined> {
    return this.#read<BootRecord>('boot.json')
  }
  /** One after the other: what was noted last is what stays. */
  async writeLive(record: LiveRecord): Promise<void> {
    const write = this.#writing.then(() => this.#write('live.json', record))
    this.#writing = write.catch(() => {})
    await write
  }
  async readLive(): Promise<LiveRecord | undefined> {
    return this.#read<LiveRecord>('live.json')
  }
  /** Nodes of devices that the VM's user was given: noted before, and until they are taken back. */
  async writeGiven(given: { schema: 1; uid: number; nodes: string[] }): Promise<void> {
    await this.#write('given.json', given)
  }
  async readGiven(): Promise<{ schema: 1; uid: number; nodes: string[] } | undefined> {
    return this.#read('given.json')
  }
  async dropGiven(): Promise<void> {
    await rm(`${this.root}/given.json`, { force: true })
  }
  async dropLiveRecord(): Promise<void> {
    await rm(`${this.root}/live.json`, { force: true })
  }

  /** What is the machine's own goes: only where it is another host's. */
  async dropState(): Promise<void> {
    await lchown(this.state, process.getuid?.() ?? 0, process.getgid?.() ?? 0).catch(() => {})
    await rm(this.state, { recursive: true, force: true })
  }

  async removeAll(): Promise<void> {
    await this.dropLive()
    await this.dropState()
    await rm(this.root, { recursive: true, force: true })
  }

  /** Written beside and renamed: a reader sees the old or the new, never half. No fsync: it only matters while QEMU lives. */
  async #write(name: string, value: unknown): Promise<void> {
    const tmp = `${this.root}/${name}.tmp`
    const file = await open(
      tmp,
      constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC | constants.O_NOFOLLOW,
      0o600,
    )
    try {
      await file.writeFile(JSON.stringify(value))
    } finally {
      await file.close()
    }
    await rename(tmp, `${this.root}/${name}`)
  }

  async #read<T extends { schema: number }>(name: string): Promise<T | undefined> {
    // That it can't be read now does not mean that it is not there.
    const text = await readFile(`${this.root}/${name}`, 'utf8').catch(ignoreMissing)
    if (text === undefined) return undefined
    try {
      const value = JSON.parse(text) as T
      return value.schema === 1 ? value : undefined
    } catch {
      return undefined
    }
  }
}
