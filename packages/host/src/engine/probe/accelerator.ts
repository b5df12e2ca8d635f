/**
 * Which accelerator works here. `/dev/kvm` that opens proves nothing: there are hosts where a KVM guest then hangs. So a
 * 64 KiB firmware (probe.S) is run that must reach 64-bit mode and say so through isa-debug-exit, once per boot of the host.
 */
import { spawn } from 'node:child_process'
import { access, constants, mkdtemp, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { dropPrivileges } from '../launch.ts'

export type Acceleration = {
  accelerator: 'kvm' | 'tcg'
  /** What was seen. */
  reason: string
  /** Supplementary groups QEMU needs to open /dev/kvm. */
  groups: number[]
}

/** The first 208 bytes of the assembled probe.S; the reset vector jumps to them. Checked by a test that assembles it anew. */
export const PROBE_CODE =
  'fa2e660f0116c8000f20c06683c8010f22c066ea1a000f00080066b810008ed88ec08ed0bc0080000031c0bf00100000b9000c0000f3ab' +
  'c7050010000003200000c7050020000003300000c7050030000083000000b8001000000f22d80f20e083c8200f22e0b9800000c00f320d' +
  '000100000f300f20c00d000000800f22c0ea86000f00180048b888776655443322114889c348c1eb2081fb443322117504b031e6f4f4eb' +
  'fd66900000000000000000ffff0000009acf00ffff00000092cf00ffff0000009aaf001f00a8000f000000'
const ROM_BYTES = 64 * 1024
const RESET_VECTOR = 0xfff0
/** `jmp entry` from the reset vector. */
const RESET_CODE = 'e90d00'
/** isa-debug-exit turns the byte 0x31 into exit code (0x31 << 1) | 1. */
const SUCCESS = 0x63
const TIMEOUT_MS = 2_000

export function probeRom(): Buffer {
  const rom = Buffer.alloc(ROM_BYTES)
  rom.write(PROBE_CODE, 0, 'hex')
  rom.write(RESET_CODE, RESET_VECTOR, 'hex')
  return rom
}

export type ProbeFacts = {
  /** From /proc/cpuinfo. */
  cpu_flags: ReadonlySet<string>
  device: 'absent' | 'closed' | 'open'
  /** What running the probe under KVM came to; undefined when there was no point in trying. */
  ran?: 'passed' | 'hung' | 'failed' | undefined
  detail?: string
}

/** Pure: facts → verdict. */
export function verdict(f: ProbeFacts): { accelerator: 'kvm' | 'tcg'; reason: string } {
  const tcg = (reason: string) => ({ accelerator: 'tcg' as const, reason })
  if (f.device === 'absent') {
    return tcg(
      f.cpu_flags.has('vmx') || f.cpu_flags.has('svm')
        ? '/dev/kvm is not there although the CPU could do it: load the module (modprobe kvm_intel or kvm_amd)'
        : 'the CPU has no hardware assistance (no vmx or svm flag), or it is switched off in the firmware set-up',
    )
  }
  if (!f.cpu_flags.has('vmx') && !f.cpu_flags.has('svm')) {
    return tcg(
      '/dev/kvm is there, but the CPU shows no hardware assistance (no vmx or svm flag): a guest under it would hang',
    )
  }
  if (f.device === 'closed') {
    return tcg(
      '/dev/kvm cannot be opened by the users QEMU runs as: give it to group kvm with mode 0660 (stock udev rule)',
    )
  }
  switch (f.ran) {
    case 'passed':
      return { accelerator: 'kvm', reason: 'a test guest reached 64-bit mode under KVM' }
    case 'hung':
      return tcg(`/dev/kvm opens, but a test guest hung under it (nothing after ${TIMEOUT_MS / 1000} s)`)
    case 'failed':
      return tcg(`/dev/kvm opens, but a test guest failed under it: ${f.detail ?? 'no reason given'}`)
    default:
      return tcg('/dev/kvm opens, but was not tried')
  }
}

/** Runs the probe guest. `uid` null: as ourselves. */
export async function runProbe(
  qemu: string,
  accelerator: 'kvm' | 'tcg',
  as: { uid: number; groups: readonly number[] } | null,
  timeout_ms: number = TIMEOUT_MS,
): Promise<{ ran: 'passed' | 'hung' | 'failed'; detail: string }> {
  const dir = await mkdtemp(join(tmpdir(), 'wadah-probe-'))
  try {
    const rom = join(dir, 'probe.rom')
    await writeFile(rom, probeRom(), { mode: 0o444 })
    if (as) await (await import('node:fs/promises')).chmod(dir, 0o711)
    const words = [
      ...(as ? dropPrivileges(as.uid, as.groups) : []),
      qemu,
      ...['-M', 'q35', '-accel', accelerator, '-m', '16', '-nodefaults', '-no-user-config', '-display', 'none'],
      ...['-no-reboot', '-bios', rom, '-device', 'isa-debug-exit,iobase=0xf4,iosize=4'],
    ]
    const child = spawn(words[0] as string, words.slice(1), { stdio: ['ignore', 'ignore', 'pipe'], cwd: '/' })
    let stderr = ''
    child.stderr.on('data', (chunk: Buffer) => {
      if (stderr.length < 4096) stderr += chunk.toString('latin1')
    })
    return await new Promise((resolve) => {
      let hung = false
      const timer = setTimeout(() => {
        hung = true
        child.kill('SIGKILL')
      }, timeout_ms)
      const end = (code: number | null, why: string) => {
        clearTimeout(timer)
        if (hung) resolve({ ran: 'hung', detail: 'no answer' })
        else if (code === SUCCESS) resolve({ ran: 'passed', detail: '' })
        else resolve({ ran: 'failed', detail: stderr.trim().split('\n').at(-1) || why })
      }
      child.once('error', (error) => end(null, error.message))
      child.once('close', (code) => end(code, `exit code ${code}`))
    })
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
}

/**
 * The verdict for this host; kept in `cacheFile` until the next boot or another QEMU or kernel.
 * `as`: the kind of user QEMU will run as; null when the daemon is not root.
 */
export async function accelerator(
  qemu: string,
  cpuFlags: ReadonlySet<string>,
  as: { uid: number } | null,
  cacheFile: string,
): Promise<Acceleration> {
  const [boot, binary] = await Promise.all([readFile('/proc/sys/kernel/random/boot_id', 'utf8'), stat(qemu)])
  const key = `${boot.trim()} ${qemu} ${binary.size} ${binary.mtimeMs}`
  // Not flushed when it is written: after a loss of power it may be empty or half there, and is as good as none.
  const kept = await readFile(cacheFile, 'utf8')
    .then((t) => JSON.parse(t) as { key: string; value: Acceleration })
    .catch(() => undefined)
  if (kept?.key === key) return kept.value
  const value = await probe(qemu, cpuFlags, as)
  await writeFile(`${cacheFile}.tmp`, JSON.stringify({ key, value }))
  await rename(`${cacheFile}.tmp`, cacheFile)
  return value
}

async function probe(qemu: string, cpuFlags: ReadonlySet<string>, as: { uid: number } | null): Promise<Acceleration> {
  const device = await stat('/dev/kvm').catch(() => undefined)
  const groups: number[] = []
  let state: ProbeFacts['device'] = 'absent'
  if (device?.isCharacterDevice()) {
    if (as) {
      // QEMU will be neither root nor the device's owner.
      if ((device.mode & 0o006) === 0o006) state = 'open'
      else if ((device.mode & 0o060) === 0o060 && device.gid !== 0) {
        state = 'open'
        groups.push(device.gid)
      } else state = 'closed'
    } else {
      state = await access('/dev/kvm', constants.R_OK | constants.W_OK).then(
        () => 'open' as const,
        () => 'closed' as const,
      )
    }
  }
  const facts: ProbeFacts = { cpu_flags: cpuFlags, device: state }
  // Without the CPU's flag there is nothing to find out but the hang.
  if (state === 'open' && (cpuFlags.has('vmx') || cpuFlags.has('svm'))) {
    const { ran, detail } = await runProbe(qemu, 'kvm', as ? { uid: as.uid, groups } : null)
    facts.ran = ran
    facts.detail = detail
  }
  return { ...verdict(facts), groups }
}
