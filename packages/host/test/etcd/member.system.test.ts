/** A member of etcd on this machine: who it is, what it is given, and what is left alone. */
import { type ChildProcess, spawn } from 'node:child_process'
import { lstatSync, statSync } from 'node:fs'
import { chmod, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import {
  ensureMember,
  findMember,
  type MemberPlan,
  removeMember,
  stopMember,
  superviseMember,
} from '../../src/etcd/member.ts'

const UID = 23_457
const root = process.getuid?.() === 0
let directory = ''
const children: ChildProcess[] = []
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'wadah-member-'))
  await chmod(directory, 0o711)
})
afterEach(async () => {
  for (const child of children.splice(0)) child.kill('SIGKILL')
  await stopMember(directory, root ? UID : null)
  await rm(directory, { recursive: true, force: true })
})
const plan = (): MemberPlan => ({
  directory,
  tls: join(directory, 'tls'),
  name: 'm',
  address: '127.0.0.1',
  client_port: 1,
  peer_port: 2,
  initial_cluster: 'm=https://127.0.0.1:2',
  initial_state: 'new',
  token: 't',
  quota_bytes: 1,
  uid: root ? UID : null,
})
/** A process that says of itself that it is our member. */
async function pretend(uid: number | undefined, data = join(directory, 'data')): Promise<number> {
  const words = ['-c', 'read x', '--data-dir', data]
  const made = spawn('/bin/sh', words, {
    argv0: 'etcd',
    stdio: ['pipe', 'ignore', 'ignore'],
    ...(uid === undefined ? {} : { uid, gid: uid }),
  })
  children.push(made)
  await new Promise((go) => made.once('spawn', go))
  return made.pid as number
}

test.runIf(root)('what another user started under the same words is not our member, and gets no signal', async () => {
  const foreign = await pretend(UID + 1)
  expect(await findMember(directory, UID)).toBeUndefined()
  await stopMember(directory, UID)
  await removeMember(directory, UID)
  expect(() => process.kill(foreign, 0)).not.toThrow()
  expect((await findMember(directory, UID + 1))?.pid).toBe(foreign)
  const ours = await pretend(UID)
  expect((await findMember(directory, UID))?.pid).toBe(ours)
  await stopMember(directory, UID)
  expect(await findMember(directory, UID)).toBeUndefined()
})

test.runIf(root)('a member of another folder is not ours', async () => {
  await pretend(UID, join(directory, 'data2'))
  expect(await findMember(directory, UID)).toBeUndefined()
})

test.runIf(root)('the data become those of its user, but what links in them lead to does not', async () => {
  const outside = join(directory, 'outside')
  await mkdir(join(outside, 'deep'), { recursive: true })
  await writeFile(join(outside, 'secret'), 'x')
  await mkdir(join(directory, 'data/member/wal'), { recursive: true })
  await writeFile(join(directory, 'data/member/wal/0.wal'), 'x')
  await symlink(outside, join(directory, 'data/member/folder'))
  await symlink(join(outside, 'secret'), join(directory, 'data/member/file'))
  await mkdir(join(directory, 'tls'))
  // It ends at once, for there are no certificates: what was given to it before is what counts.
  await ensureMember(plan(), AbortSignal.timeout(10_000))
  for (const path of ['data', 'data/member', 'data/member/wal/0.wal', 'data/member/folder', 'data/member/file'])
    expect([path, lstatSync(join(directory, path)).uid]).toEqual([path, UID])
  for (const path of ['outside', 'outside/deep', 'outside/secret'])
    expect([path, statSync(join(directory, path)).uid]).toEqual([path, 0])
})

test.runIf(root)('one that runs is left alone for as long as it does, and started anew when it has ended', async () => {
  await pretend(UID)
  const over = new AbortController()
  const said: string[] = []
  const done = superviseMember(plan, (line) => said.push(line), over.signal)
  await sleep(2_500)
  expect(said).toEqual([])
  children[0]?.kill('SIGKILL')
  await vi.waitFor(() => expect(said[0]).toMatch(/^etcd was started/), 20_000)
  over.abort()
  await done
})
