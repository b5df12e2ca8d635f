/**
 * Post-copy needs userfaultfd in the target's QEMU. QEMU 7.2 asks for one that also sees faults of the kernel (its own device emulation
 * writes to guest memory through system calls), by the system call and not by /dev/userfaultfd, and Linux gives that to a process without
 * privileges only where `vm.unprivileged_userfaultfd` is 1 (Documentation/admin-guide/sysctl/vm.rst; mm/userfaultfd.c). The other way,
 * CAP_SYS_PTRACE, would let an escaped guest attach to every process of its user: never given.
 */
import { readFile, writeFile } from 'node:fs/promises'
import type { PostcopySupport } from '@wadah/ports/migration'

const SYSCTL = '/proc/sys/vm/unprivileged_userfaultfd'
const REMEDY = 'allow it on that host: sysctl -w vm.unprivileged_userfaultfd=1'

/** `root`: whether QEMU runs as another user than root. Without root it has the daemon's own rights, which are no more. */
export async function postcopySupport(path = SYSCTL): Promise<PostcopySupport> {
  const value = await readFile(path, 'utf8').catch(() => undefined)
  if (value === undefined)
    return {
      ok: false,
      reason: 'this kernel has no userfaultfd, or does not say who may use it',
      remedy: 'a kernel from 5.11 on, with CONFIG_USERFAULTFD; or move by pre-copy: --mode precopy',
    }
  if (value.trim() === '1') return { ok: true }
  return {
    ok: false,
    reason: 'QEMU runs without privileges here, and vm.unprivileged_userfaultfd is 0',
    remedy: REMEDY,
  }
}

/**
 * Lets unprivileged programs of this host use userfaultfd, until the host is restarted. It is a setting of the whole host and makes some attacks on the
 * kernel easier, so it is never done silently: only where the administrator has allowed post-copy. Returns what it was.
 * @throws when the daemon may not
 */
export async function allowUserfaults(path = SYSCTL): Promise<string> {
  const was = (await readFile(path, 'utf8')).trim()
  if (was !== '1') await writeFile(path, '1\n')
  return was
}
