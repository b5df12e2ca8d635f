/** A program of ours that runs where an escaped QEMU would: its user, groups, capabilities, group of resources. */
import { execFileSync, spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { constants } from 'node:os'

/** What the kernel says about a process's rights, as it says it. */
export function rightsOf(pid: number | 'self'): Record<string, string> {
  return parseRights(readFileSync(`/proc/${pid}/status`, 'utf8'))
}
export function parseRights(status: string): Record<string, string> {
  const wanted = ['Uid', 'Gid', 'Groups', 'CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs']
  return Object.fromEntries(
    status.split('\n').flatMap((line) => {
      const [name = '', value = ''] = line.split(/:\s*/)
      return wanted.includes(name) ? [[name, value.trim().replaceAll(/\s+/g, ' ')]] : []
    }),
  )
}

/**
 * Words of a try, its first letter says which:
 * `r` open to read, `w` to write, `l` list, `c` make a file in, `u` connect to a UNIX socket, `k` signal, `p` ptrace, `m` read memory,
 * `t` attach to a tap, `x` connect to an address and a port.
 */
export type Try = ['r' | 'w' | 'l' | 'c' | 'u' | 'k' | 'p' | 'm' | 't' | 'x', string, string?]

const TRIES = String.raw`
use Fcntl; use Socket; use POSIX ();
$| = 1;
my ($ptrace, $readv) = ($^O, 0);
chomp(my $machine = (POSIX::uname())[4]);
my %call = $machine eq 'x86_64' ? (ptrace => 101, readv => 310) : (ptrace => 117, readv => 270);
while (my $line = <STDIN>) {
  chomp $line;
  my ($what, $a, $b) = split /\t/, $line;
  my $ok = 0; $! = 0;
  if ($what eq 'r') { $ok = sysopen(my $f, $a, O_RDONLY | O_NONBLOCK); }
  elsif ($what eq 'w') { $ok = sysopen(my $f, $a, O_WRONLY | O_NONBLOCK | O_APPEND); }
  elsif ($what eq 'l') { $ok = opendir(my $d, $a); }
  elsif ($what eq 'c') { $ok = sysopen(my $f, "$a/.escaped", O_WRONLY | O_CREAT | O_EXCL); unlink "$a/.escaped" if $ok; }
  elsif ($what eq 'u') { socket(my $s, PF_UNIX, SOCK_STREAM, 0); $ok = connect($s, sockaddr_un($a)); }
  elsif ($what eq 'k') { $ok = kill($b, $a); }
  elsif ($what eq 'p') { $ok = syscall($call{ptrace}, 16, $a + 0, 0, 0) == 0; syscall($call{ptrace}, 17, $a + 0, 0, 0) if $ok; }
  elsif ($what eq 'm') {
    my $to = "\0" x 8; my $here = pack('PQ', $to, 8); my $there = pack('QQ', hex($b), 8);
    $ok = syscall($call{readv}, $a + 0, $here, 1, $there, 1, 0) > 0;
  }
  elsif ($what eq 't') {
    sysopen(my $f, '/dev/net/tun', O_RDWR) or print("no tun\n"), next;
    my $request = pack('a16 s x22', $a, 0x5002);
    $ok = defined ioctl($f, 0x400454ca, $request);
  }
  elsif ($what eq 'x') {
    my $six = $a =~ /:/;
    socket(my $s, $six ? PF_INET6 : PF_INET, SOCK_STREAM, 0);
    local $SIG{ALRM} = sub { };
    $ok = connect($s, $six ? Socket::pack_sockaddr_in6($b, Socket::inet_pton(AF_INET6, $a)) : pack_sockaddr_in($b, inet_aton($a)));
  }
  print $ok ? "ok\n" : (0 + $!) . "\n";
}
`

export class Escaped {
  readonly #words: [string, ...string[]]

  /** @param qemu whose place it takes */
  constructor(qemu: number) {
    const { Uid = '', Gid = '', Groups = '' } = rightsOf(qemu)
    const groups = Groups.replaceAll(' ', ',')
    const cgroups = readFileSync(`/proc/${qemu}/cgroup`, 'utf8').trim().split('\n')
    const join = cgroups.flatMap((line) => {
      const [, controllers = '', path = ''] = line.split(':')
      if (!path.includes('/wadah')) return []
      const mount = controllers === '' ? '/sys/fs/cgroup' : `/sys/fs/cgroup/${controllers.split(',')[0]}`
      return [`echo $$ > ${mount}${path}/cgroup.procs`]
    })
    this.#words = [
      '/bin/sh',
      '-ec',
      [...join, 'exec "$@"'].join('\n'),
      'sh',
      'setpriv',
      `--reuid=${Uid.split(' ')[0]}`,
      `--regid=${Gid.split(' ')[0]}`,
      ...(groups === '' ? ['--clear-groups'] : [`--groups=${groups}`]),
      '--bounding-set=-all',
      '--inh-caps=-all',
      '--no-new-privs',
      '--',
    ]
  }

  run(...argv: string[]): { code: number | null; stdout: string; stderr: string } {
    const [first, ...rest] = [...this.#words, ...argv]
    const { status, stdout, stderr } = spawnSync(first, rest, { encoding: 'utf8', cwd: '/', env: {}, timeout: 60_000 })
    return { code: status, stdout, stderr }
  }

  /** What came of each try: `ok`, or the error's name. */
  tries(list: readonly Try[]): string[] {
    const [first, ...rest] = [...this.#words, 'perl', '-e', TRIES]
    const out = execFileSync(first, rest, {
      encoding: 'utf8',
      cwd: '/',
      env: {},
      timeout: 60_000,
      input: list.map((t) => `${t.join('\t')}\n`).join(''),
      maxBuffer: 2 ** 24,
    })
    const names = new Map(Object.entries(constants.errno).map(([name, number]) => [String(number), name]))
    const answers = out
      .trimEnd()
      .split('\n')
      .map((line) => names.get(line) ?? line)
    if (answers.length !== list.length) throw new Error(`${list.length} tries, ${answers.length} answers`)
    return answers
  }
}
