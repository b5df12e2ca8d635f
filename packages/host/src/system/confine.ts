/**
 * Programs that read files from elsewhere (qemu-img, decompressors) run with next to nothing: a user of their own, no capability, no
 * network, bounded memory, CPU time and file size; killed with us. What they may read is lent to them by a group of its own, what
 * they write belongs to their user only while they run.
 */
import { type FileHandle, readlink } from 'node:fs/promises'
import { openRegular } from './files.ts'
import { type Loan, Loans, giveBack } from './lent.ts'
import { type RunOptions, type RunResult, run } from './run.ts'

export type ConfineLimits = {
  /** Of address space; a program that asks for more is refused it. */
  memory_bytes: number
  cpu_s: number
  /** The largest file it may write. */
  file_bytes: number
}

/** How many run at the same time; further ones wait for their turn. */
const SLOTS = 8
const LENT_MODE = 0o640

/** What stands before the program. `user` null: not root, so that only limits can be set. Pure. */
export function confinedWords(
  user: { uid: number; groups: readonly number[] } | null,
  limits: ConfineLimits,
  program: string,
  argv: readonly string[],
): string[] {
  const bounds = [
    'prlimit',
    `--as=${Math.ceil(limits.memory_bytes)}`,
    `--cpu=${Math.ceil(limits.cpu_s)}`,
    `--fsize=${Math.ceil(limits.file_bytes)}`,
    '--core=0',
    '--nofile=256',
    '--',
  ]
  // Last of all: a change of user would take the death signal away again.
  const drop =
    user === null
      ? ['setpriv', '--no-new-privs', '--pdeathsig', 'KILL', '--']
      : [
          'setpriv',
          `--reuid=${user.uid}`,
          `--regid=${user.uid}`,
          ...(user.groups.length > 0 ? [`--groups=${user.groups.join(',')}`] : ['--clear-groups']),
          '--bounding-set=-all',
          '--inh-caps=-all',
          '--no-new-privs',
          '--pdeathsig',
          'KILL',
          '--',
        ]
  return [...(user === null ? [] : ['unshare', '--net', '--ipc', '--']), ...bounds, ...drop, program, ...argv]
}

export type Confined = {
  /** Its user; null where that is ours. */
  readonly uid: number | null
  /** Runs a program; as often as wanted. */
  run(
    program: string,
    argv: readonly string[],
    options: Omit<RunOptions, 'uid' | 'gid' | 'die_with_us'> & { limits: ConfineLimits },
  ): Promise<RunResult>
}

export class Confinement {
  readonly #firstId: number | null
  readonly #slots = Array.from({ length: SLOTS }, () => false)
  readonly #waiting: (() => void)[] = []
  /** Files lent now: a group for each, so that a program reads what was lent to it and not what was lent to another. */
  readonly #lent = new Map<string, { group: number; users: number; end: () => Promise<void> }>()
  readonly #loans: Loans | undefined
  /** Of files that a crash left lent and that can't be reached now. */
  readonly #reserved = new Set<number>()
  #tail: Promise<unknown> = Promise.resolve()

  /**
   * @param firstId user and group ids from here on (8 users, then groups) belong to nobody else; null when we are not root
   * @param loans where it is noted what is lent, for `recover` after a crash
   */
  constructor(firstId: number | null, loans?: string) {
    this.#firstId = firstId
    this.#loans = firstId === null || loans === undefined ? undefined : new Loans(loans)
  }

  /** What a crash left lent is given back. At the start, before anything is lent. */
  async recover(): Promise<void> {
    for (const { lent } of (await this.#loans?.recover()) ?? []) this.#reserved.add(lent.gid)
  }

  /**
   * Lends files for as long as `work` takes. `reads` are opened by path in the program; `writes` (an open handle of an empty file of
   * ours) belongs to its user meanwhile. `signal`: ends the waiting for a turn; what runs ends by its own.
   */
  async use<T>(
    files: { reads: readonly string[]; writes?: FileHandle },
    work: (confined: Confined) => Promise<T>,
    signal?: AbortSignal,
  ): Promise<T> {
    const slot = await this.#take(signal)
    const uid = this.#firstId === null ? null : this.#firstId + slot
    const groups: number[] = []
    const lent: string[] = []
    let written: (() => Promise<void>) | undefined
    try {
      if (uid !== null) {
        for (const path of new Set(files.reads)) {
          const group = await this.#alone(() => this.#lend(path))
          if (group === undefined) continue
          lent.push(path)
          groups.push(group)
        }
        if (files.writes) written = await this.#handOver(files.writes, uid)
      }
      return await work({
        uid,
        run: (program, argv, { limits, ...options }) => {
          const [first = '', ...rest] = confinedWords(uid === null ? null : { uid, groups }, limits, program, argv)
          return run(first, rest, options)
        },
      })
    } finally {
      await written?.()
      for (const path of lent) await this.#alone(() => this.#giveBack(path))
      this.#slots[slot] = false
      this.#waiting.shift()?.()
    }
  }

  /** As the user that owns what is to be changed: a VM's, say. Root's own files are changed by root, without the right to more. */
  as(uid: number): Confined {
    const user = this.#firstId === null ? null : { uid, groups: [] }
    return {
      uid: user?.uid ?? null,
      run: (program, argv, { limits, ...options }) => {
        const [first = '', ...rest] = confinedWords(user, limits, program, argv)
        return run(first, rest, options)
      },
    }
  }

  /** The file that is written belongs to the program's user. @returns how it becomes ours again */
  async #handOver(file: FileHandle, uid: number): Promise<() => Promise<void>> {
    const { mode } = await file.stat()
    const us = process.getuid?.() ?? 0
    const path = await readlink(`/proc/self/fd/${file.fd}`)
    const note = await this.#loans?.note({ path, lent: { uid, gid: 0 }, own: { uid: us, gid: 0, mode: mode & 0o7777 } })
    await file.chown(uid, 0)
    return async () => {
      const back = await file.chown(us, 0).then(
        () => true,
        () => false,
      )
      if (back && note !== undefined) await this.#loans?.drop(note).catch(() => {})
    }
  }

  async #take(signal: AbortSignal | undefined): Promise<number> {
    for (;;) {
      if (signal?.aborted) {
        // It may have been its turn.
        this.#waiting.shift()?.()
        throw signal.reason
      }
      const free = this.#slots.indexOf(false)
      if (free >= 0) {
        this.#slots[free] = true
        return free
      }
      await new Promise<void>((resolve) => {
        const wake = () => {
          signal?.removeEventListener('abort', stop)
          resolve()
        }
        const stop = () => {
          const at = this.#waiting.indexOf(wake)
          if (at >= 0) this.#waiting.splice(at, 1)
          resolve()
        }
        this.#waiting.push(wake)
        signal?.addEventListener('abort', stop, { once: true })
      })
    }
  }

  async #alone<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.#tail.then(work, work)
    this.#tail = mine.catch(() => {})
    return mine
  }

  /** Undefined: everybody may read it anyway. */
  async #lend(path: string): Promise<number | undefined> {
    const there = this.#lent.get(path)
    if (there) {
      there.users += 1
      return there.group
    }
    const handle = await openRegular(path)
    try {
      const { uid, gid, mode } = await handle.stat()
      if ((mode & 0o004) !== 0) return undefined
      const taken = new Set([...this.#lent.values()].map((l) => l.group).concat(...this.#reserved))
      let group = (this.#firstId ?? 0) + SLOTS
      while (taken.has(group)) group += 1
      const loan: Loan = { path, lent: { uid, gid: group }, own: { uid, gid, mode: mode & 0o7777 } }
      const note = await this.#loans?.note(loan)
      await handle.chown(uid, group)
      await handle.chmod(LENT_MODE)
      const end = async () => {
        // What can't be given back now is at the next start.
        if ((await giveBack(loan)) && note !== undefined) await this.#loans?.drop(note)
      }
      this.#lent.set(path, { group, users: 1, end })
      return group
    } finally {
      await handle.close()
    }
  }

  async #giveBack(path: string): Promise<void> {
    const lent = this.#lent.get(path)
    if (!lent || --lent.users > 0) return
    this.#lent.delete(path)
    await lent.end().catch(() => this.#reserved.add(lent.group))
  }
}
