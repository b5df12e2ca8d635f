import { spawn } from 'node:child_process'
import { copyFileSync, mkdtempSync, renameSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { isReplaced } from '../../src/engine/process.ts'

test('a program that an upgrade has replaced under a running process is told from the new one', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'wadah-replaced-'))
  const program = join(dir, 'sleep')
  copyFileSync('/bin/sleep', program)
  const child = spawn(program, ['60'])
  try {
    await new Promise((resolve) => child.once('spawn', resolve))
    expect(await isReplaced(child.pid!, program)).toBe(false)
    copyFileSync('/bin/sleep', `${program}.new`)
    renameSync(`${program}.new`, program)
    expect(await isReplaced(child.pid!, program)).toBe(true)
    // Nothing can be told of what is not there.
    expect(await isReplaced(child.pid!, `${program}.none`)).toBe(false)
  } finally {
    child.kill('SIGKILL')
    rmSync(dir, { recursive: true, force: true })
  }
})
