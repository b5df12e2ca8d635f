/** What a file system is and how much room it has. */
import { createHash } from 'node:crypto'
import { statfs } from 'node:fs/promises'

/** `f_type` as in linux/magic.h and statfs(2). */
const MAGIC: Record<number, string> = {
  0xef53: 'ext4',
  0x58465342: 'xfs',
  0x9123683e: 'btrfs',
  0x01021994: 'tmpfs',
  0x6969: 'nfs',
  0x65735546: 'fuse',
  0x2fc12fc1: 'zfs',
  0xf2f52010: 'f2fs',
  0x794c7630: 'overlay',
  0xff534d42: 'cifs',
  0xfe534d42: 'smb3',
  0x5346544e: 'ntfs',
  0x7366746e: 'ntfs3',
  0x4d44: 'vfat',
  0x2011bab0: 'exfat',
  0xca451a4e: 'bcachefs',
  0x00c36400: 'ceph',
  0x01161970: 'gfs2',
  0x7461636f: 'ocfs2',
  0x858458f6: 'ramfs',
  0x52654973: 'reiserfs',
  0x3153464a: 'jfs',
}

/** The usual name of a file system by its magic number (`ext4` stands for ext2 and ext3 too, which share it). */
export function fileSystemName(type: number): string {
  return MAGIC[type >>> 0] ?? `0x${(type >>> 0).toString(16)}`
}

/** Capacity and what an ordinary user may still write, in bytes. */
export async function room(path: string): Promise<{ capacity_bytes: number; free_bytes: number; file_system: string }> {
  const s = await statfs(path)
  return {
    capacity_bytes: s.blocks * s.bsize,
    free_bytes: s.bavail * s.bsize,
    file_system: fileSystemName(s.type),
  }
}

type Mount = { at: string; type: string; which: string; what: string }

/** Of two mounts at one place the later one is seen. */
function mountOf(mountinfo: string, path: string): Mount | undefined {
  let found: Mount | undefined
  for (const line of mountinfo.split('\n')) {
    const [id, , device, root, where, options, ...rest] = line.split(' ')
    // What stands before the dash is of this one mount's place among others.
    const [type, source, ...supers] = rest.slice(rest.indexOf('-') + 1)
    // NFS: ports and addresses that are made up anew at each mount.
    const more = supers.map((all) =>
      all
        .split(',')
        .filter((o) => !/^(mountport|mountaddr|clientaddr|addr)=/.test(o))
        .join(','),
    )
    if (where === undefined || type === undefined || !rest.includes('-')) continue
    const at = where.replaceAll(/\\([0-7]{3})/g, (_all, digits: string) =>
      String.fromCharCode(Number.parseInt(digits, 8)),
    )
    const inside = path === at || path.startsWith(at.endsWith('/') ? at : `${at}/`)
    if (inside && at.length >= (found?.at.length ?? 0))
      found = { at, type, which: `${id} ${device}`, what: [type, source, root, options, ...more].join(' ') }
  }
  return found
}

/** Pure: what is mounted where a path lies, as the kernel calls it (`fuse.glusterfs`, `nfs4`), from /proc/self/mountinfo; '' where nothing is. */
export const mountedAt = (mountinfo: string, path: string): string => mountOf(mountinfo, path)?.type ?? ''

/** Pure: `what` changes with the file system and its options, `which` whenever it is mounted anew. */
export function mountAt(mountinfo: string, path: string): { what: string; which: string } {
  const { what = '', which = '' } = mountOf(mountinfo, path) ?? {}
  return { what: createHash('sha256').update(what).digest('hex').slice(0, 16), which }
}
