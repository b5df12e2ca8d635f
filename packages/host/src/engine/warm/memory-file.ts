/**
 * RAM in a memory file (memfd) that several QEMUs map. For clones it is sealed: nobody, whoever has it open, can write to it, cut it or
 * punch holes into it any more (fcntl(2), F_SEAL_WRITE), while a private mapping of it may be written: each clone gets its own pages then.
 * A plain file would not do: QEMU before 8.2 opens what it maps for writing, and reports pages that a guest frees by punching holes into it.
 * Node has no memfd_create(2); perl, which is in every Debian, has syscall.
 */
import { type ChildProcessByStdio, spawn } from 'node:child_process'
import { type FileHandle, open } from 'node:fs/promises'
import type { Readable, Writable } from 'node:stream'
import { fail } from '@wadah/api/fault'
import { toolEnv } from '../../system/run.ts'

const MAKE_MS = 120_000
/** x86-64: memfd_create is 319; MFD_CLOEXEC|MFD_ALLOW_SEALING 3; F_ADD_SEALS 1033; SEAL|SHRINK|GROW|WRITE 15 (linux/memfd.h, linux/fcntl.h). */
const SCRIPT = `
my ($size, $file) = @ARGV;
my $name = 'wadah-ram';
my $fd = syscall(319, $name, 3);
die "memfd_create: $!\\n" if $fd < 0;
open(my $ram, '+<&=', $fd) or die "$!\\n";
truncate($ram, $size) or die "truncate: $!\\n";
if (defined $file) {
  open(my $from, '<', $file) or die "$file: $!\\n";
  my ($at, $zero) = (0, "\\0" x 65536);
  while (my $n = sysread($from, my $part, 65536)) {
    if ($part ne $zero) {
      sysseek($ram, $at, 0);
      syswrite($ram, $part) == $n or die "write: $!\\n";
    }
    $at += $n;
  }
  die "$file has $at bytes, not $size\\n" if $at != $size;
  fcntl($ram, 1033, 15) or die "F_ADD_SEALS: $!\\n";
}
$| = 1;
print "$fd\\n";
<STDIN>;
`

/** An empty one that may be written, or (`file`) a sealed one with the file's content. Lives as long as somebody has it open. */
export async function memoryFile(bytes: number, file?: string): Promise<FileHandle> {
  const words = ['-e', SCRIPT, '--', String(bytes), ...(file === undefined ? [] : [file])]
  const child: ChildProcessByStdio<Writable, Readable, Readable> = spawn('perl', words, {
    stdio: ['pipe', 'pipe', 'pipe'],
    env: toolEnv(),
  })
  const timer = setTimeout(() => child.kill('SIGKILL'), MAKE_MS)
  let said = ''
  let wrong = ''
  child.stdin.on('error', () => {})
  child.stderr.on('data', (d: Buffer) => (wrong += d.toString('latin1').slice(0, 1000)))
  const ended = new Promise<string>((resolve) => {
    child.once('error', (error) => resolve(error.message))
    child.once('close', (code, signal) => resolve(wrong.trim() || signal || `exit code ${code}`))
  })
  try {
    const ready = new Promise<void>((resolve) =>
      child.stdout.on('data', (d: Buffer) => {
        said += d.toString('latin1')
        if (said.includes('\n')) resolve()
      }),
    )
    const why = await Promise.race([ready, ended])
    const fd = Number.parseInt(said, 10)
    if (why !== undefined || child.pid === undefined || !Number.isSafeInteger(fd))
      throw fail('host_lacks', `Memory for a warm template could not be had (perl: ${why ?? said}).`, {
        remedy: 'apt install perl-base; see also: wadah host check',
      })
    return await open(`/proc/${child.pid}/fd/${fd}`, file === undefined ? 'r+' : 'r')
  } finally {
    clearTimeout(timer)
    child.stdin.end()
    await ended
  }
}
