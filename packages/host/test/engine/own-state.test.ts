/** UEFI variables and a TPM as they go to another host: what is taken, and what never is. */
import { link, lstat, mkdir, mkdtemp, readFile, readdir, rename, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { VmDirectory } from '../../src/engine/directory.ts'
import { readOwnState, writeOwnState } from '../../src/engine/own-state.ts'
import { HostSnapshots, type SnapshotsOptions } from '../../src/engine/snapshot/snapshots.ts'

let dir = ''
let [from, to]: VmDirectory[] = []
const uid = process.getuid?.() === 0 ? 231_501 : null
const base64 = (text: string) => Buffer.from(text).toString('base64')

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'wadah-own-'))
  for (const host of ['a', 'b']) await mkdir(join(dir, host, 'vms'), { recursive: true })
  from = new VmDirectory(join(dir, 'a'), 'vm-aaaaaaaaaa')
  to = new VmDirectory(join(dir, 'b'), 'vm-aaaaaaaaaa')
})
afterEach(() => rm(dir, { recursive: true, force: true }))

const STATE = { 'nvram.fd': base64('variables'), 'tpm/tpm2-00.permall': base64('secrets') }
const read = () => readOwnState(from as VmDirectory)
const write = (state: Record<string, string>) => writeOwnState(to as VmDirectory, state, uid)

test("it arrives as it was, the VM's own; what was there before goes", async () => {
  expect(await read()).toEqual({})
  await writeOwnState(from as VmDirectory, STATE, uid)
  await writeFile(`${from?.state}/tpm/.lock`, '')
  await write({ 'nvram-secure.fd': base64('of an earlier life'), 'tpm/tpm2-00.volatilestate': base64('x') })
  const state = await read()
  expect(state).toEqual(STATE)
  await write(state)
  await write(state)
  expect((await readdir(to?.state ?? '')).toSorted()).toEqual(['nvram.fd', 'tpm'])
  expect(await readdir(`${to?.state}/tpm`)).toEqual(['tpm2-00.permall'])
  expect(await readFile(`${to?.state}/tpm/tpm2-00.permall`, 'utf8')).toBe('secrets')
  for (const name of ['', '/nvram.fd', '/tpm', '/tpm/tpm2-00.permall']) {
    const { uid: owner, mode } = await lstat(`${to?.state}${name}`)
    if (uid !== null) expect(owner).toBe(uid)
    expect(mode & 0o077).toBe(0)
  }
  await write({})
  expect(await readdir(to?.state ?? '')).toEqual([])
})

test.each([
  ['a way out', { 'tpm/../../boot.json': base64('x') }],
  ['another folder', { 'tpm/a/tpm2-00.permall': base64('x') }],
  ['another name', { 'tpm/.lock': base64('x') }],
  ['a file of no kind', { seed: base64('x') }],
  ['no text', { 'tpm/tpm2-00.permall': 7 as never }],
  ['too large a TPM', { 'tpm/tpm2-00.permall': 'A'.repeat(2 ** 20) }],
  ['too much of all', { 'nvram.fd': 'A'.repeat(2 ** 21), 'nvram-secure.fd': 'A'.repeat(2 ** 21) }],
])('%s is refused', async (_, state) => {
  await expect(write(state as Record<string, string>)).rejects.toMatchObject({ fault: { code: 'invalid' } })
})

test('what a snapshot keeps goes as it is, twice as once, and nothing else does', async () => {
  const [here, there] = ['a', 'b'].map(
    (host) => new HostSnapshots({ dataDir: join(dir, host), root: uid !== null } as SnapshotsOptions),
  ) as [HostSnapshots, HostSnapshots]
  const [vm, snapshot] = ['vm-aaaaaaaaaa', 'snap-aaaaaaaaaa']
  expect(await here.readKept(vm, snapshot)).toEqual({})
  await writeOwnState(from as VmDirectory, STATE, uid)
  await here.keepState(vm, snapshot)
  const state = await here.readKept(vm, snapshot)
  // A TPM is part of saved RAM.
  expect(state).toEqual({ 'nvram.fd': STATE['nvram.fd'] })
  for (let i = 0; i < 2; i++) await there.writeKept(vm, snapshot, state)
  await there.restoreState(vm, snapshot, uid ?? 0)
  expect(await readOwnState(to as VmDirectory)).toEqual(state)
  await expect(there.writeKept(vm, snapshot, { '../x': base64('x') })).rejects.toMatchObject({
    fault: { code: 'invalid' },
  })
  await expect(there.writeKept(vm, '../../x', state)).rejects.toThrow('not an id')
})

test("a VM's user who laid links in its folder gets nothing of the host sent along", async () => {
  await writeOwnState(from as VmDirectory, STATE, uid)
  const secret = join(dir, 'secret')
  await writeFile(secret, 'of the host')
  const tpm = `${from?.state}/tpm`
  await symlink(secret, `${tpm}/tpm2-01.permall`)
  await expect(read()).rejects.toThrow(/ELOOP/)
  await rm(`${tpm}/tpm2-01.permall`)
  await link(secret, `${tpm}/tpm2-01.permall`)
  await expect(read()).rejects.toMatchObject({ fault: { code: 'wrong_state' } })
  await rm(`${tpm}/tpm2-01.permall`)
  await rename(tpm, `${tpm}.aside`)
  await symlink(`${tpm}.aside`, tpm)
  await expect(read()).rejects.toThrow(/ELOOP|ENOTDIR/)
})
