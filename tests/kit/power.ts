/**
 * What a loss of power may leave of files. A model of a file system that promises what POSIX does, and no more: what was written to
 * a file before its last fsync is there, and so is the name that a folder had at its last fsync; of everything after that any part may
 * be. (After Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014.) Owners and modes are not lost in it.
 */
import { chownSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { basename, dirname } from 'node:path'
import type { Op } from './trace.ts'

type Change = { start: number; end: number } & (
  | { kind: 'write'; at: number; data: Buffer }
  | { kind: 'truncate'; size: number }
  | { kind: 'zero'; at: number; bytes: number; grow: boolean }
)
class Inode {
  changes: Change[] = []
  syncs: { start: number; end: number }[] = []
  /** As it is now, with nothing lost. */
  content: Buffer = Buffer.alloc(0)
  /** Of a folder, now. */
  entries = new Map<string, Inode>()
  mode = 0o644
  uid = 0
  gid = 0
  readonly folder: boolean
  constructor(folder: boolean) {
    this.folder = folder
  }
}
/** A change of names. It is durable when the folder that it puts something into, or takes something from, is. */
type Naming = { start: number; end: number; in: Inode; set?: [string, Inode]; drop?: [Inode, string, Inode] }

/** Numbers that look random and are the same for the same seed (mulberry32). */
export function random(seed: number): () => number {
  let a = seed
  return () => {
    a = (a + 0x6d2b79f5) | 0
    let t = Math.imul(a ^ (a >>> 15), 1 | a)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

const PAGE = 4096

function apply(before: Buffer, c: Change): Buffer {
  const sized = (size: number) => {
    if (size <= before.length) return before
    const larger = Buffer.alloc(size)
    before.copy(larger)
    return larger
  }
  if (c.kind === 'truncate') return c.size <= before.length ? Buffer.from(before.subarray(0, c.size)) : sized(c.size)
  if (c.kind === 'write') {
    const after = sized(c.at + c.data.length)
    c.data.copy(after, c.at)
    return after
  }
  const after = c.grow ? sized(c.at + c.bytes) : before
  after.fill(0, Math.min(c.at, after.length), Math.min(c.at + c.bytes, after.length))
  return after
}

export class Disk {
  readonly root = new Inode(true)
  readonly #path: string
  readonly #inodes = new Set<Inode>([this.root])
  readonly #namings: Naming[] = []

  /** @param path the folder that was traced, empty at first */
  constructor(path: string, ops: readonly Op[]) {
    this.#path = path
    this.root.mode = 0o711
    const positions = new Map<string, { inode: Inode; at: number; append: boolean }>()
    for (const op of ops) this.#replay(op, positions)
  }

  #find(path: string): Inode | undefined {
    if (path === this.#path) return this.root
    let at: Inode | undefined = this.root
    for (const name of path.slice(this.#path.length + 1).split('/')) at = at?.entries.get(name)
    return at
  }

  #name(op: Op, set: { path: string; inode: Inode } | undefined, drop: string | undefined): void {
    const dropped = drop === undefined ? undefined : this.#find(drop)
    const from = drop === undefined ? undefined : this.#find(dirname(drop))
    const into = this.#find(dirname(set?.path ?? drop ?? ''))
    if (!into) throw new Error(`no folder for ${set?.path ?? drop}`)
    const naming: Naming = { start: op.start, end: op.end, in: into }
    if (drop !== undefined && from && dropped) naming.drop = [from, basename(drop), dropped]
    if (set) naming.set = [basename(set.path), set.inode]
    perform(naming, (folder) => folder.entries)
    this.#namings.push(naming)
  }

  #change(
    op: Op,
    inode: Inode,
    change:
      | { kind: 'truncate'; size: number }
      | { kind: 'write'; at: number; data: Buffer }
      | { kind: 'zero'; at: number; bytes: number; grow: boolean },
  ): void {
    const whole = { start: op.start, end: op.end, ...change } as Change
    inode.changes.push(whole)
    inode.content = apply(inode.content, whole)
  }

  #replay(op: Op, positions: Map<string, { inode: Inode; at: number; append: boolean }>): void {
    const inode = this.#find(op.path)
    const key = 'fd' in op ? `${op.fd}:${op.path}` : ''
    switch (op.op) {
      case 'open': {
        let opened = inode
        if (!opened && op.flags.includes('O_CREAT')) {
          opened = new Inode(false)
          opened.mode = op.mode & ~0o022
          this.#inodes.add(opened)
          this.#name(op, { path: op.path, inode: opened }, undefined)
        } else if (opened && op.flags.includes('O_TRUNC') && opened.content.length > 0)
          this.#change(op, opened, { kind: 'truncate', size: 0 })
        if (opened) positions.set(key, { inode: opened, at: 0, append: op.flags.includes('O_APPEND') })
        return
      }
      case 'seek': {
        const position = positions.get(key)
        if (position) position.at = op.to
        return
      }
      case 'write':
      case 'copy': {
        // A file that has no name any more is nobody's after the loss.
        if (!inode) return
        const data = op.op === 'write' ? op.data : this.#read(op.from, op.bytes)
        if (op.at !== undefined) return this.#change(op, inode, { kind: 'write', at: op.at, data })
        // It may have been renamed since it was opened, or its descriptor be a copy (dd).
        const opened = [...positions].filter(([, p]) => p.inode === inode)
        const position = (opened.find(([k]) => k.startsWith(`${op.fd}:`)) ?? opened.at(-1))?.[1]
        if (!position) throw new Error(`${op.path} was opened by nobody`)
        const start = position.append ? inode.content.length : position.at
        position.at = start + data.length
        return this.#change(op, inode, { kind: 'write', at: start, data })
      }
      case 'truncate':
        return inode && this.#change(op, inode, { kind: 'truncate', size: op.size })
      case 'zero':
        return inode && this.#change(op, inode, { kind: 'zero', at: op.at, bytes: op.bytes, grow: op.grow })
      case 'sync':
        return void inode?.syncs.push({ start: op.start, end: op.end })
      case 'mkdir': {
        const made = new Inode(true)
        made.mode = op.mode & ~0o022
        this.#inodes.add(made)
        return this.#name(op, { path: op.path, inode: made }, undefined)
      }
      case 'rename':
        return inode && this.#name(op, { path: op.to, inode }, op.path)
      case 'link':
        return inode && this.#name(op, { path: op.to, inode }, undefined)
      case 'unlink':
      case 'rmdir':
        return inode && this.#name(op, undefined, op.path)
      case 'chmod':
        if (inode) inode.mode = op.mode
        return
      case 'chown':
        if (inode) [inode.uid, inode.gid] = [op.uid, op.gid]
    }
  }

  /** Whole files only: that is how they are copied. */
  #read(path: string, bytes: number): Buffer {
    const content = this.#find(path)?.content ?? readFileSync(path)
    if (content.length !== bytes) throw new Error(`a part of ${path} was copied`)
    return content
  }

  /**
   * One of the states that a loss of power at `when` (seconds) may leave, written to the folder.
   * @param keep what of the unflushed is there: all, nothing, or by chance
   */
  write(when: number, keep: 'all' | 'nothing' | 'any' | 'prefix', chance: () => number): void {
    const p = chance()
    const keeps = () => keep === 'all' || (keep !== 'nothing' && chance() < p)
    // A file system with a journal keeps the order of names; others need not.
    const cut = keep === 'prefix' ? chance() * when : undefined
    const first = this.#namings[0]?.start ?? when
    const entries = new Map<Inode, Map<string, Inode>>([...this.#inodes].map((i) => [i, new Map()]))
    for (const n of this.#namings) {
      if (n.start > when) continue
      const synced = n.in.syncs.some((s) => s.start >= n.end && s.end <= when)
      const inTime = cut === undefined ? keeps() : n.start < first + (cut / when) * (when - first)
      if (synced || inTime) perform(n, (folder) => entries.get(folder) ?? new Map())
    }
    rmSync(this.#path, { recursive: true, force: true })
    const make = (inode: Inode, path: string) => {
      if (inode.folder) {
        mkdirSync(path, { mode: inode.mode })
        for (const [name, child] of entries.get(inode) ?? []) make(child, `${path}/${name}`)
      } else writeFileSync(path, contentAt(inode, when, keeps, chance), { mode: inode.mode })
      chownSync(path, inode.uid, inode.gid)
    }
    make(this.root, this.#path)
  }

  /** A file as it was at `when`, nothing lost. */
  content(path: string, when: number): Buffer | undefined {
    const inode = this.#find(path)
    return (
      inode &&
      contentAt(
        inode,
        when,
        () => true,
        () => 0,
      )
    )
  }
}

function perform(n: Naming, of: (folder: Inode) => Map<string, Inode>): void {
  if (n.drop) {
    const [folder, name, inode] = n.drop
    if (of(folder).get(name) === inode) of(folder).delete(name)
  }
  if (n.set) of(n.in).set(...n.set)
}

function contentAt(inode: Inode, when: number, keeps: () => boolean, chance: () => number): Buffer {
  let content: Buffer = Buffer.alloc(0)
  for (const c of inode.changes) {
    if (c.start > when) continue
    const synced = inode.syncs.some((s) => s.start >= c.end && s.end <= when)
    const whole = synced || keeps()
    const torn = !whole && c.kind === 'write' && c.data.length > PAGE && keeps()
    if (whole) content = apply(content, c)
    else if (torn) {
      // Torn: some of its pages.
      for (let at = 0; at < c.data.length; at += PAGE)
        if (chance() < 0.5) content = apply(content, { ...c, at: c.at + at, data: c.data.subarray(at, at + PAGE) })
    }
  }
  return content
}
