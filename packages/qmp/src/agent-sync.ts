import { type JsonObject, parseLine } from './wire.ts'

/**
 * The byte that no JSON contains. Sent before `guest-sync-delimited` it flushes what the agent's parser has half read;
 * the agent sends it before its reply (QEMU, qga/qapi-schema.json).
 */
export const MARK = 0xff
const NEWLINE = 0x0a
/** `{"return": 2147483647, "id": 2147483647}` and some room. */
const MAX_REPLY_BYTES = 128

/** Looks for the reply to one sync in a stream where anything may come before it. Linear, and keeps at most one short line. */
export class SyncScanner {
  readonly #id: number
  #line: number[] | undefined
  /** Bytes looked at so far. */
  seen_bytes = 0

  constructor(id: number) {
    this.#id = id
  }

  /** What follows the reply in this chunk, and whether the reply repeats the request's id; undefined until it comes. */
  push(chunk: Buffer): { rest: Buffer; echoes: boolean } | undefined {
    this.seen_bytes += chunk.length
    let at = this.#line ? 0 : chunk.indexOf(MARK)
    while (at !== -1 && at < chunk.length) {
      const byte = chunk[at] ?? 0
      at += 1
      if (byte === MARK) this.#line = []
      else if (byte === NEWLINE) {
        const reply = this.#parse()
        if (reply?.return === this.#id) return { rest: chunk.subarray(at), echoes: reply.id === this.#id }
        this.#line = undefined
      } else if (this.#line && this.#line.length < MAX_REPLY_BYTES) this.#line.push(byte)
      else this.#line = undefined
      if (!this.#line) at = chunk.indexOf(MARK, at)
    }
    return undefined
  }

  #parse(): JsonObject | undefined {
    try {
      return parseLine(Uint8Array.from(this.#line ?? []))
    } catch {
      return undefined
    }
  }
}
