/** What a program did to files, as `strace` wrote it down: one operation for each call that changed something or made it durable. */
import { readFileSync } from 'node:fs'

/** Of `strace`: `-D` keeps the traced program our child; paths of descriptors and all bytes are written out as hex. */
export const STRACE = ['strace', '-D', '-f', '-y', '-ttt', '-T', '-xx', '-s', '33554432', '--seccomp-bpf']
const CHANGES = [
  'openat,open,creat,lseek,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,fsync,fdatasync,syncfs,sync',
  'rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,chmod,fchmod,fchmodat',
  'chown,fchown,lchown,fchownat,copy_file_range,sendfile,ioctl,mmap',
]
export const straceWords = (out: string): string[] => [...STRACE, '-o', out, '-e', `trace=${CHANGES.join(',')}`]

export type Op = { start: number; end: number } & (
  | { op: 'open'; path: string; fd: number; flags: string; mode: number }
  | { op: 'write'; path: string; fd: number; at: number | undefined; data: Buffer }
  | { op: 'seek'; path: string; fd: number; to: number }
  | { op: 'copy'; from: string; path: string; fd: number; at: number | undefined; bytes: number }
  | { op: 'truncate'; path: string; size: number }
  | { op: 'zero'; path: string; at: number; bytes: number; grow: boolean }
  | { op: 'sync'; path: string }
  | { op: 'rename' | 'link'; path: string; to: string }
  | { op: 'unlink' | 'rmdir'; path: string }
  | { op: 'mkdir'; path: string; mode: number }
  | { op: 'chmod'; path: string; mode: number }
  | { op: 'chown'; path: string; uid: number; gid: number }
)

/** Arguments of a call, split at commas that stand outside of quotes and brackets. Quoted bytes are hex and hold none of these. */
function split(text: string): string[] {
  const parts: string[] = []
  let depth = 0
  let quoted = false
  let from = 0
  for (let i = 0; i < text.length; i++) {
    const c = text[i]
    if (quoted) {
      // Long data: to its end at once.
      i = text.indexOf('"', i)
      quoted = false
    } else if (c === '"') quoted = true
    else if (c === '[' || c === '{' || c === '<' || c === '(') depth += 1
    else if (c === ']' || c === '}' || c === '>' || c === ')') depth -= 1
    else if (c === ',' && depth === 0) {
      parts.push(text.slice(from, i).trim())
      from = i + 1
    }
  }
  parts.push(text.slice(from).trim())
  return parts
}

const bytes = (quoted: string) => Buffer.from(quoted.replaceAll(/"|\\x|\.\.\.$/g, ''), 'hex')
const text = (quoted: string) => bytes(quoted).toString('utf8')
const pathOfFd = (word: string) => text(/<([^>]*)>/.exec(word)?.[1] ?? '')
const numberOfFd = (word: string) => Number.parseInt(word, 10)

/** A path that is relative to a descriptor or to the folder it was called in. */
function at(dir: string | undefined, name: string): string {
  const path = text(name)
  if (path.startsWith('/')) return path
  return `${dir === undefined ? '' : pathOfFd(dir)}/${path}`
}

/** @throws on what it can't follow: a file that is mapped to be written, or a call that it does not know, within `under` */
export function readTrace(file: string, under: string): Op[] {
  const ops: Op[] = []
  const halves = new Map<string, { start: number; call: string; args: string }>()
  for (const line of readFileSync(file, 'latin1').split('\n')) {
    const head = /^(\d+) +(\d+\.\d+) /.exec(line)
    if (!head) continue
    const [all, pid = '', time = '0'] = head
    let rest = line.slice(all.length)
    let start = Number(time)
    let resumed = false
    if (rest.startsWith('<... ')) {
      const half = halves.get(pid)
      halves.delete(pid)
      if (!half) continue
      rest = `${half.call}(${half.args}${rest.slice(rest.indexOf('>') + 1)}`
      start = half.start
      resumed = true
    }
    const open = rest.indexOf('(')
    if (open < 0 || !/^[a-z0-9_]+$/.test(rest.slice(0, open))) continue
    const call = rest.slice(0, open)
    if (rest.endsWith(' <unfinished ...>')) {
      halves.set(pid, { start, call, args: rest.slice(open + 1, -' <unfinished ...>'.length) })
      continue
    }
    const tail = /\) += (-?\d+|0x[0-9a-f]+|\?)(?:<[^>]*>)?[^"]*? <(\d+\.\d+)>$/.exec(rest.slice(-4096))
    if (!tail || tail[1]?.startsWith('-') || tail[1] === '?') continue
    const args = split(rest.slice(open + 1, rest.length - (tail[0]?.length ?? 0)))
    const end = resumed ? Number(time) : start + Number(tail[2])
    for (const op of meaning(call, args, Number(tail[1]), under)) ops.push({ start, end, ...op } as Op)
  }
  return ops.sort((a, b) => a.end - b.end)
}

type Meaning = Op extends infer O ? (O extends Op ? Omit<O, 'start' | 'end'> : never) : never

function meaning(call: string, a: string[], result: number, under: string): Meaning[] {
  const [p = '', q = '', r = '', s = '', t = ''] = a
  const inside = (...paths: string[]) => paths.some((path) => path === under || path.startsWith(`${under}/`))
  const on = (path: string, op: Meaning): Meaning[] => (inside(path) ? [op] : [])
  switch (call) {
    case 'openat':
    case 'open': {
      const path = call === 'open' ? text(p) : at(p, q)
      const [flags, mode] = call === 'open' ? [q, r] : [r, s]
      return on(path, { op: 'open', path, fd: result, flags, mode: Number.parseInt(mode || '0', 8) })
    }
    case 'write':
      return on(pathOfFd(p), {
        op: 'write',
        path: pathOfFd(p),
        fd: numberOfFd(p),
        at: undefined,
        data: bytes(q).subarray(0, result),
      })
    case 'pwrite64':
      return on(pathOfFd(p), {
        op: 'write',
        path: pathOfFd(p),
        fd: numberOfFd(p),
        at: Number(s),
        data: bytes(q).subarray(0, result),
      })
    case 'writev':
    case 'pwritev':
    case 'pwritev2': {
      const data = Buffer.concat([...q.matchAll(/iov_base="([^"]*)"/g)].map((m) => bytes(m[1] ?? ''))).subarray(
        0,
        result,
      )
      return on(pathOfFd(p), {
        op: 'write',
        path: pathOfFd(p),
        fd: numberOfFd(p),
        at: call === 'writev' ? undefined : Number(s),
        data,
      })
    }
    case 'lseek':
      return on(pathOfFd(p), { op: 'seek', path: pathOfFd(p), fd: numberOfFd(p), to: result })
    case 'copy_file_range':
    case 'sendfile': {
      const [from, to, offset] = call === 'sendfile' ? [q, p, 'NULL'] : [p, r, s]
      if (offset !== 'NULL' || (call === 'sendfile' ? r : q) !== 'NULL') {
        if (inside(pathOfFd(to))) throw new Error(`a copy with offsets: ${a.join(', ').slice(0, 300)}`)
      }
      return on(pathOfFd(to), {
        op: 'copy',
        from: pathOfFd(from),
        path: pathOfFd(to),
        fd: numberOfFd(to),
        at: undefined,
        bytes: result,
      })
    }
    case 'ftruncate':
      return on(pathOfFd(p), { op: 'truncate', path: pathOfFd(p), size: Number(q) })
    case 'truncate':
      return on(text(p), { op: 'truncate', path: text(p), size: Number(q) })
    case 'fallocate': {
      const path = pathOfFd(p)
      if (!inside(path)) return []
      const zeroes = /PUNCH_HOLE|ZERO_RANGE/.test(q)
      if (!zeroes && !/^(0|FALLOC_FL_KEEP_SIZE|0x[0-9a-f]+)$/.test(q)) throw new Error(`fallocate with ${q}`)
      return [
        {
          op: 'zero',
          path,
          at: zeroes ? Number(r) : Number(r) + Number(s),
          bytes: zeroes ? Number(s) : 0,
          grow: !q.includes('KEEP_SIZE'),
        },
      ]
    }
    case 'fsync':
    case 'fdatasync':
      return on(pathOfFd(p), { op: 'sync', path: pathOfFd(p) })
    case 'rename':
      return inside(text(p), text(q)) ? [{ op: 'rename', path: text(p), to: text(q) }] : []
    case 'renameat':
    case 'renameat2':
      return inside(at(p, q), at(r, s)) ? [{ op: 'rename', path: at(p, q), to: at(r, s) }] : []
    case 'link':
      return on(text(q), { op: 'link', path: text(p), to: text(q) })
    case 'linkat':
      return on(at(r, s), { op: 'link', path: at(p, q), to: at(r, s) })
    case 'unlink':
      return on(text(p), { op: 'unlink', path: text(p) })
    case 'unlinkat':
      return on(at(p, q), { op: r.includes('REMOVEDIR') ? 'rmdir' : 'unlink', path: at(p, q) })
    case 'rmdir':
      return on(text(p), { op: 'rmdir', path: text(p) })
    case 'mkdir':
      return on(text(p), { op: 'mkdir', path: text(p), mode: Number.parseInt(q, 8) })
    case 'mkdirat':
      return on(at(p, q), { op: 'mkdir', path: at(p, q), mode: Number.parseInt(r, 8) })
    case 'chmod':
      return on(text(p), { op: 'chmod', path: text(p), mode: Number.parseInt(q, 8) })
    case 'fchmod':
      return on(pathOfFd(p), { op: 'chmod', path: pathOfFd(p), mode: Number.parseInt(q, 8) })
    case 'fchmodat':
      return on(at(p, q), { op: 'chmod', path: at(p, q), mode: Number.parseInt(r, 8) })
    case 'chown':
    case 'lchown':
      return on(text(p), { op: 'chown', path: text(p), uid: Number(q), gid: Number(r) })
    case 'fchown':
      return on(pathOfFd(p), { op: 'chown', path: pathOfFd(p), uid: Number(q), gid: Number(r) })
    case 'fchownat':
      return on(at(p, q), { op: 'chown', path: at(p, q), uid: Number(r), gid: Number(s) })
    case 'mmap':
      if (/MAP_SHARED/.test(s) && r.includes('PROT_WRITE') && inside(pathOfFd(t)))
        throw new Error(`${pathOfFd(t)} is written by mmap`)
      return []
    case 'ioctl':
      if (q.startsWith('FICLONE') && inside(pathOfFd(p)))
        throw new Error(`${pathOfFd(p)} shares blocks with another file`)
      return []
    case 'sync':
    case 'syncfs':
      throw new Error('sync of everything: the model does not know it')
    default:
      throw new Error(`the call ${call} is not followed`)
  }
}
