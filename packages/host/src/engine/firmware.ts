/** UEFI firmware of this host, and the variables that belong to each VM. */
import { constants } from 'node:fs'
import { access, lstat, rename, rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import { fail } from '@wadah/api/fault'
import type { Firmware } from '@wadah/api/schema/vm'
import type { BootRecord } from '@wadah/ports/machine'
import { createExclusive, ignoreMissing, openRegular, syncDir } from '../system/files.ts'
import type { VmDirectory } from './directory.ts'

export type FirmwareFiles = { code: string; vars: string }
type Kind = 'uefi' | 'uefi-secure'

/** Where distributions put OVMF: code that all VMs share, and the variables that a new VM begins with. */
const PLACES: Record<Kind, FirmwareFiles[]> = {
  uefi: [
    { code: '/usr/share/OVMF/OVMF_CODE_4M.fd', vars: '/usr/share/OVMF/OVMF_VARS_4M.fd' },
    { code: '/usr/share/OVMF/OVMF_CODE.fd', vars: '/usr/share/OVMF/OVMF_VARS.fd' },
    { code: '/usr/share/edk2/ovmf/OVMF_CODE.fd', vars: '/usr/share/edk2/ovmf/OVMF_VARS.fd' },
  ],
  // Variables with the keys of Microsoft enrolled: distributions' and Windows' loaders are signed by them.
  'uefi-secure': [
    { code: '/usr/share/OVMF/OVMF_CODE_4M.secboot.fd', vars: '/usr/share/OVMF/OVMF_VARS_4M.ms.fd' },
    { code: '/usr/share/OVMF/OVMF_CODE.secboot.fd', vars: '/usr/share/OVMF/OVMF_VARS.ms.fd' },
    { code: '/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd', vars: '/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd' },
  ],
}

const PACKAGES = 'ovmf (Debian, Ubuntu) or edk2-ovmf (Fedora)'

async function there(path: string): Promise<boolean> {
  return access(path, constants.R_OK).then(
    () => true,
    () => false,
  )
}

async function find(kind: Kind): Promise<FirmwareFiles | undefined> {
  for (const files of PLACES[kind]) if ((await there(files.code)) && (await there(files.vars))) return files
  return undefined
}

/** Which firmware VMs can have on this host. */
export async function firmwareKinds(): Promise<('bios' | Kind)[]> {
  const kinds: ('bios' | Kind)[] = ['bios']
  for (const kind of ['uefi', 'uefi-secure'] as const) if (await find(kind)) kinds.push(kind)
  return kinds
}

/** What a spec says, with what is left out filled in. Pure. */
export function firmwareOf(firmware: Firmware | undefined): BootRecord['firmware'] {
  if (firmware?.kind !== 'uefi') return { kind: 'bios' }
  return { kind: 'uefi', secure_boot: firmware.secure_boot === true }
}

/** Variables with and without enrolled keys are two files: who changes from one to the other finds each as it was. */
const varsName = (kind: Kind): string => (kind === 'uefi' ? 'nvram.fd' : 'nvram-secure.fd')

/**
 * The files for a VM's start; its variables are made at the first one. Undefined for a BIOS.
 * @throws WadahError `host_lacks`
 */
export async function firmwareFiles(
  firmware: BootRecord['firmware'],
  directory: VmDirectory,
  uid: number | null,
): Promise<FirmwareFiles | undefined> {
  if (firmware.kind === 'bios') return undefined
  const kind = firmware.secure_boot ? 'uefi-secure' : 'uefi'
  const files = await find(kind)
  if (!files) {
    throw fail(
      'host_lacks',
      `This host has no UEFI firmware${firmware.secure_boot ? ' with Secure Boot' : ''} for VMs.`,
      {
        field: '/firmware',
        remedy: `install ${PACKAGES}`,
      },
    )
  }
  const vars = `${directory.state}/${varsName(kind)}`
  await directory.makeState(uid)
  if (!(await lstat(vars).catch(() => undefined))) await give(files.vars, vars, uid)
  return { code: files.code, vars }
}

async function give(from: string, to: string, uid: number | null): Promise<void> {
  const source = await openRegular(from)
  try {
    await place(await source.readFile(), to, uid)
  } finally {
    await source.close()
  }
}

/** Made beside and whole before it has its name: half a file of variables would be taken for a broken machine. */
async function place(data: Uint8Array, to: string, uid: number | null): Promise<void> {
  const part = `${to}.part`
  // Of a start that was cut off.
  await rm(part, { force: true })
  const file = await createExclusive(part, 0o600)
  try {
    await file.writeFile(data)
    if (uid !== null) await file.chown(uid, uid)
    await file.sync()
  } finally {
    await file.close()
  }
  await rename(part, to)
  await syncDir(dirname(to))
}

/** A clone begins with the variables of its source: boot entries lead to the same places in it. */
export async function copyFirmwareState(from: VmDirectory, to: VmDirectory, uid: number | null): Promise<void> {
  for (const kind of ['uefi', 'uefi-secure'] as const) {
    const [source, target] = [from, to].map((d) => `${d.state}/${varsName(kind)}`) as [string, string]
    if (!(await lstat(source).catch(() => undefined))?.isFile()) continue
    await to.makeState(uid)
    if (!(await lstat(target).catch(() => undefined))) await give(source, target, uid)
  }
}

/** As it was kept; what is not among it goes. */
export async function replaceFirmwareState(from: VmDirectory, to: VmDirectory, uid: number | null): Promise<void> {
  for (const kind of ['uefi', 'uefi-secure'] as const) {
    const [source, target] = [from, to].map((d) => `${d.state}/${varsName(kind)}`) as [string, string]
    if (!(await lstat(source).catch(ignoreMissing))?.isFile()) {
      await rm(target, { force: true })
      continue
    }
    await to.makeState(uid)
    await give(source, target, uid)
  }
}

/** More than any OVMF's variables. */
const MOST_VARS_BYTES = 2 * 2 ** 20
const VARS = (['uefi', 'uefi-secure'] as const).map(varsName)

/** The variables of a VM, to go to another host: file → base64, of both files, for which one is used is the spec's to say. */
export async function readFirmwareState(directory: VmDirectory): Promise<Record<string, string>> {
  const state: Record<string, string> = {}
  for (const name of VARS) {
    const file = await openRegular(`${directory.state}/${name}`).catch(ignoreMissing)
    if (!file) continue
    try {
      if ((await file.stat()).size > MOST_VARS_BYTES) throw fail('internal', `${name} is no file of UEFI variables`)
      state[name] = (await file.readFile()).toString('base64')
    } finally {
      await file.close()
    }
  }
  return state
}

/** Another host's daemon says so: only files that are known, and no larger than they can be. @throws WadahError `invalid` */
export async function writeFirmwareState(
  directory: VmDirectory,
  state: Record<string, string> | undefined,
  uid: number | null,
): Promise<void> {
  for (const [name, text] of Object.entries(state ?? {})) {
    if (!VARS.includes(name) || typeof text !== 'string' || text.length > (MOST_VARS_BYTES / 3) * 4 + 4)
      throw fail('invalid', `The other host sent what is no file of UEFI variables (${name.slice(0, 64)}).`)
    await directory.makeState(uid)
    await place(Buffer.from(text, 'base64'), `${directory.state}/${name}`, uid)
  }
}
