/** A host of a lab whose clock is wrong: its daemon and its QEMUs, by libfaketime. The machine's own clock, and all that waits, is left alone. */
import { appendFileSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ROOT } from './daemon.ts'
import { LAB } from './lab.ts'

const folder = join(tmpdir(), `wadah-clocks-${process.pid}`)
// The linker knows what $LIB is on this machine (ld.so(8)).
const under = (off_s: number) =>
  `LD_PRELOAD='/usr/$LIB/faketime/libfaketime.so.1' FAKETIME='${off_s < 0 ? '' : '+'}${off_s}' FAKETIME_DONT_FAKE_MONOTONIC=1`

/** @returns the path of a `wadahd` whose clock is that many seconds ahead, for `WADAH_DAEMON` */
export function clockOff(off_s: number): string {
  const home = join(folder, String(off_s))
  mkdirSync(home, { recursive: true, mode: 0o755 })
  const wadahd = join(home, 'wadahd')
  writeFileSync(wadahd, `#!/bin/sh\n${under(off_s)} exec ${ROOT}/bin/wadahd "$@"\n`, { mode: 0o755 })
  return wadahd
}

/** From its next start on that host runs QEMUs with such a clock; what the daemon starts has nothing of its environment. */
export function qemuClockOff(i: number, off_s: number): void {
  const qemu = join(folder, String(off_s), 'qemu-system-x86_64')
  writeFileSync(qemu, `#!/bin/sh\n${under(off_s)} exec /usr/bin/qemu-system-x86_64 "$@"\n`, { mode: 0o755 })
  appendFileSync(`/var/lib/wadah-lab-${LAB}/${LAB}${i}.toml`, `qemu = ${JSON.stringify(qemu)}\n`)
}

export const dropClocks = (): void => rmSync(folder, { recursive: true, force: true })
