/** What is a machine's own beside its disks (UEFI variables, the TPM), as it goes to another host while the machine does not run. */
import { constants } from 'node:fs'
import { lchown, mkdir, open, readdir, rename } from 'node:fs/promises'
import { dirname } from 'node:path'
import { fail } from '@wadah/api/fault'
import { createExclusive, ignoreMissing, openRegular, syncDir } from '../system/files.ts'
import type { VmDirectory } from './directory.ts'
import { readFirmwareState, writeFirmwareState } from './firmware.ts'
import { stateOf } from './tpm.ts'

const TPM = 'tpm/'
/** What swtpm keeps; its lock is none of it. */
const TPM_FILE = /^tpm2-[0-9a-f]{2}\.[a-z]{1,32}$/
/** More than libtpms writes. */
const MOST_TPM_BYTES = 512 * 1024
const MOST_TPM_FILES = 16
/** All of it goes as one message. */
const MOST_BYTES = 3 * 2 ** 20

/** Name → base64; of a VM that does not run. */
export async function readOwnState(directory: VmDirectory): Promise<Record<string, string>> {
  const variables = await readFirmwareState(directory)
  const state = { ...variables, ...(await readTpmState(directory)) }
  checkSize(state)
  return state
}

/** Another host's daemon says so: only what is known, and no larger than it can be. @throws WadahError `invalid` */
export async function writeOwnState(
  directory: VmDirectory,
  state: Record<string, string>,
  uid: number | null,
): Promise<void> {
  checkSize(state)
  const tpm: [string, Buffer][] = []
  const variables: Record<string, string> = {}
  for (const [name, text] of Object.entries(state)) {
    if (typeof text !== 'string') throw unknownFile(name)
    if (!name.startsWith(TPM)) variables[name] = text
    else if (!TPM_FILE.test(name.slice(TPM.length)) || text.length > (MOST_TPM_BYTES / 3) * 4 + 4)
      throw unknownFile(name)
    else tpm.push([name.slice(TPM.length), Buffer.from(text, 'base64')])
  }
  if (tpm.length > MOST_TPM_FILES) throw fail('invalid', `A TPM keeps no ${tpm.length} files.`)
  await directory.makeState(uid)
  await directory.dropState()
  await directory.makeState(uid)
  await writeFirmwareState(directory, variables, uid)
  if (tpm.length > 0) await writeTpmState(directory, tpm, uid)
  for (const folder of [directory.state, directory.root, dirname(directory.root)]) await syncDir(folder)
}

/** Its folder was the VM's own user's to change: no link is followed, and only what is that user's is read. */
async function readTpmState(directory: VmDirectory): Promise<Record<string, string>> {
  const { O_RDONLY, O_DIRECTORY, O_NOFOLLOW } = constants
  const folder = await open(stateOf(directory), O_RDONLY | O_DIRECTORY | O_NOFOLLOW).catch(ignoreMissing)
  if (!folder) return {}
  try {
    const at = `/proc/self/fd/${folder.fd}`
    const owner = (await folder.stat()).uid
    const state: Record<string, string> = {}
    for (const name of (await readdir(at)).filter((n) => TPM_FILE.test(n))) {
      await using file = await openRegular(`${at}/${name}`)
      const { size, uid, nlink } = await file.stat()
      if (uid !== owner || nlink !== 1 || size > MOST_TPM_BYTES)
        throw fail('wrong_state', `The state of its TPM on this host is not what swtpm left (${name}).`, {
          remedy: `look at it: ls -l ${stateOf(directory)}`,
        })
      state[TPM + name] = (await file.readFile()).toString('base64')
    }
    return state
  } finally {
    await folder.close()
  }
}

/** Whole before it has its name: half a TPM would never start. It is the VM's user's only when it is. */
async function writeTpmState(directory: VmDirectory, files: [string, Buffer][], uid: number | null): Promise<void> {
  const state = stateOf(directory)
  const part = `${state}.part`
  await mkdir(part, { mode: 0o700 })
  for (const [name, data] of files) {
    await using file = await createExclusive(`${part}/${name}`, 0o600)
    await file.writeFile(data)
    if (uid !== null) await file.chown(uid, uid)
    await file.sync()
  }
  if (uid !== null) await lchown(part, uid, uid)
  await syncDir(part)
  await rename(part, state)
}

function checkSize(state: Record<string, string>): void {
  const bytes = Object.values(state).reduce((sum, text) => sum + String(text).length, 0)
  if (bytes > MOST_BYTES)
    throw fail('invalid', `Its UEFI variables and TPM have ${bytes} bytes, more than any firmware keeps.`)
}

const unknownFile = (name: string) =>
  fail('invalid', `The other host sent what is no file of UEFI variables or of a TPM (${name.slice(0, 64)}).`)
