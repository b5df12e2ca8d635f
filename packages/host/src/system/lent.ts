/**
 * What is lent to confined programs now, noted on the disk before it is: after a crash each file gets back what it had, so that
 * nobody who gets the same group or user later can read it.
 */
import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { mkdir, readFile, readdir, rm, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { createExclusive, errno, ignoreMissing, openRegular, syncDir } from './files.ts'

export type Loan = {
  path: string
  /** While it is lent. */
  lent: { uid: number; gid: number }
  /** Before and after. */
  own: { uid: number; gid: number; mode: number }
}

export class Loans {
  readonly #dir: string

  /** @param dir a folder of ours, made when needed */
  constructor(dir: string) {
    this.#dir = dir
  }

  /** On the disk when it returns. @returns the name of the note */
  async note(loan: Loan): Promise<string> {
    await mkdir(this.#dir, { recursive: true, mode: 0o700 })
    const name = randomBytes(8).toString('hex')
    const file = await createExclusive(join(this.#dir, name), 0o600)
    try {
      await file.writeFile(JSON.stringify(loan))
      await file.sync()
    } finally {
      await file.close()
    }
    await syncDir(this.#dir)
    return name
  }

  async drop(name: string): Promise<void> {
    await rm(join(this.#dir, name), { force: true })
  }

  /**
   * Gives everything back that a crash left lent; nothing may be lent meanwhile.
   * @returns what could not be reached (a pool that is not mounted): its group must not be given to anybody
   */
  async recover(): Promise<Loan[]> {
    const left: Loan[] = []
    for (const name of (await readdir(this.#dir).catch(ignoreMissing)) ?? []) {
      const loan = parse(await readFile(join(this.#dir, name), 'utf8'))
      // Half a note: the crash came before anything was lent.
      if (loan && !(await giveBack(loan).catch(() => false))) left.push(loan)
      else await this.drop(name)
    }
    return left
  }
}

function parse(text: string): Loan | undefined {
  try {
    return JSON.parse(text) as Loan
  } catch {
    return undefined
  }
}

/** As it was, unless somebody changed it meanwhile. False: the folder it lies in is not there now. */
export async function giveBack({ path, lent, own }: Loan): Promise<boolean> {
  const handle = await openRegular(path, constants.O_RDONLY).catch((error: unknown) => {
    if (['ENOENT', 'ELOOP', 'EINVAL'].includes(errno(error))) return undefined
    throw error
  })
  if (!handle) return (await stat(dirname(path)).catch(ignoreMissing)) !== undefined
  try {
    const now = await handle.stat()
    if (now.uid !== lent.uid || now.gid !== lent.gid) return true
    await handle.chmod(own.mode)
    await handle.chown(own.uid, own.gid)
    return true
  } finally {
    await handle.close()
  }
}
