/** A file system that several hosts have mounted, with what their clients may do wrong. */
import type { PoolDefinition, SharedPools } from '@wadah/ports/volumes'

export const POOL: PoolDefinition = { id: 'pool-aaaaaaaaaa', path: '/srv/common', direct_io: true }
export const HOSTS = ['host-aaaaaaaaaa', 'host-bbbbbbbbbb', 'host-cccccccccc']

/** What a client keeps of what it has read or written itself, although another has written since. */
export type Cache = { kept?: true; anew?: true; length?: true; only_after?: number }
/** The server: marks by name, files by name, and who holds which lock. */
export type Server = { marks: Map<string, string>; files: Map<string, string[]>; locks: Set<string> }
export const server = (): Server => ({ marks: new Map(), files: new Map(), locks: new Set() })

export function client(
  s: Server,
  cache: Cache = {},
  seesLocks = true,
): SharedPools & { open: Set<string>; at: { what: string; which: string }; cache: Cache; locks: { seen: boolean } } {
  const held = new Map<string, string[]>()
  const open = new Set<string>()
  let looks = 0
  const at = { what: 'nfs a', which: '1' }
  const locks = { seen: seesLocks }
  return {
    open,
    at,
    cache,
    locks,
    mounted: async () => ({ ...at }),
    mark: async (_pool, name, text) => void s.marks.set(name, text),
    read: async (_pool, name) => s.marks.get(name),
    unmark: async (_pool, name) => {
      s.marks.delete(name)
      s.files.delete(name)
    },
    hold: async (_pool, name) => {
      s.locks.add(name)
      return async () => void s.locks.delete(name)
    },
    isFree: async (_pool, name) => !locks.seen || !s.locks.has(name),
    writeBlocks: async (_pool, name, blocks, text) => {
      // Nobody makes a file here: whoever may make one has looked at the folder before.
      if (!s.marks.has(name)) throw new Error(`no file ${name}`)
      const file = s.files.get(name) ?? []
      for (const block of blocks) file[block] = text
      s.files.set(name, file)
      held.set(name, [...file])
    },
    look: async (_pool, name, blocks) => {
      open.add(name)
      const now = s.files.get(name) ?? []
      const old = ++looks > (cache.only_after ?? 0) ? (held.get(name) ?? now) : now
      held.set(name, [...now])
      const from = (stale?: true) => blocks.map((block) => (stale ? old : now)[block] ?? '')
      const length = (cache.length ? old : now).length
      return { length, kept: from(cache.kept), anew: from(cache.anew), mounted: 'fuse.glusterfs' }
    },
    letGo: async (_pool, name) => void open.delete(name),
  }
}
