import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { probeRom, runProbe } from '../../src/engine/probe/accelerator.ts'

test('the bytes of the probe are what its source assembles to', () => {
  const dir = mkdtempSync(join(tmpdir(), 'wadah-probe-'))
  try {
    const source = join(import.meta.dirname, '../../src/engine/probe/probe.S')
    execFileSync('as', ['--64', '-o', join(dir, 'p.o'), source])
    execFileSync(
      'ld',
      ['-m', 'elf_x86_64', '-Ttext', '0xf0000', '--oformat', 'binary', '-o', join(dir, 'p.bin'), join(dir, 'p.o')],
      { stdio: 'ignore' },
    )
    expect(probeRom().equals(readFileSync(join(dir, 'p.bin')))).toBe(true)
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
})

test('it reaches 64-bit mode by translation, also as an unprivileged user', async () => {
  const as = process.getuid?.() === 0 ? { uid: 210_000, groups: [] } : null
  expect(await runProbe('/usr/bin/qemu-system-x86_64', 'tcg', as, 30_000)).toEqual({ ran: 'passed', detail: '' })
})
