/**
 * Downloads by HTTP, resumable: after a cut connection, and after a restart of the daemon, by what lies beside the file. Redirects are
 * followed by hand, each looked at like the first URL; the connection goes to the address that was looked at (addresses.ts).
 */
import { createHash, type Hash } from 'node:crypto'
import { constants } from 'node:fs'
import { open, readFile, rename, writeFile } from 'node:fs/promises'
import http from 'node:http'
import https from 'node:https'
import { fail } from '@wadah/api/fault'
import { type AddressRules, type Resolve, resolveOnce } from './addresses.ts'

export type DownloadOptions = {
  url: string
  /** Where it lands; `<file>.json` beside it says what it is part of. */
  file: string
  limit_bytes: number
  rules: AddressRules
  signal: AbortSignal
  log?: ((line: string) => void) | undefined
  progress?: ((done_bytes: number, total_bytes: number | undefined) => void) | undefined
  /** For tests. */
  resolve?: Resolve
  /** Without a byte for so long the connection is given up and tried again. Default 60 s. */
  silence_ms?: number
  /** Before the first try again; doubles. Default 1 s. */
  patience_ms?: number
  /** A CA besides the system's, for tests. */
  ca?: string
}

/** What the server said of the file: it must be the same when the rest is fetched. */
type Beginning = { url: string; etag?: string; modified?: string; total?: number }

const REDIRECTS_MAX = 5
/** Tries in a row that brought nothing new. */
const TRIES_MAX = 5
const SILENCE_MS = 60_000

/** http or https, no user or password in it. @throws WadahError `invalid` */
export function parseUrl(text: string): URL {
  const wrong = (why: string): Error => fail('invalid', `This URL can't be used: ${why}.`, { field: '/url' })
  if (!URL.canParse(text)) throw wrong('it is none')
  const url = new URL(text)
  if (url.protocol !== 'http:' && url.protocol !== 'https:') throw wrong('http:// and https:// are taken')
  if (url.username !== '' || url.password !== '')
    throw wrong('it has a user or password in it, which would be kept and logged')
  if (url.hostname === '') throw wrong('it names no server')
  return url
}

/** For logs and records: a query may hold a secret. */
export const shownUrl = (url: URL): string => `${url.origin}${url.pathname}`

/** A failure after which another try may help. */
class Cut extends Error {}

/** @returns size and checksum of the whole @throws WadahError `forbidden`, `too_large`, `unreachable`, `timeout`, `no_room` */
export async function download(o: DownloadOptions): Promise<{ size_bytes: number; sha256: string }> {
  parseUrl(o.url)
  const handle = await open(o.file, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o600)
  try {
    const begun = await readBeginning(o)
    let { size } = await handle.stat()
    if (begun?.url !== o.url || size > o.limit_bytes) size = 0
    await handle.truncate(size)
    const state: State = {
      size,
      best: size,
      begun: size > 0 ? begun : undefined,
      hash: createHash('sha256'),
      hashed: 0,
    }
    if (size > 0) o.log?.(`going on at ${size} bytes`)
    for (let failures = 0, wait = o.patience_ms ?? 1000; ; ) {
      o.signal.throwIfAborted()
      const before = state.best
      try {
        await attempt(o, handle, state)
        break
      } catch (error) {
        o.signal.throwIfAborted()
        if (!(error instanceof Cut)) throw error
        const forward = state.best > before
        failures = forward ? 0 : failures + 1
        if (forward) wait = o.patience_ms ?? 1000
        if (failures >= TRIES_MAX)
          throw fail('download_failed', `The download does not come to its end: ${error.message}.`, {
            remedy: 'try again later, or download it yourself and import the file',
            effect: 'none',
          })
        o.log?.(`${error.message}; trying again`)
        await pause(wait, o.signal)
        wait = Math.min(wait * 2, 30_000)
      }
    }
    await handle.datasync()
    await digest(handle, state)
    return { size_bytes: state.size, sha256: state.hash.digest('hex') }
  } finally {
    await handle.close()
  }
}

type Handle = Awaited<ReturnType<typeof open>>
type State = { size: number; best: number; begun: Beginning | undefined; hash: Hash; hashed: number }

/** Hashes what is in the file and was not hashed yet. */
async function digest(handle: Handle, state: State): Promise<void> {
  const buffer = Buffer.alloc(1024 * 1024)
  while (state.hashed < state.size) {
    const { bytesRead } = await handle.read(buffer, 0, Math.min(buffer.length, state.size - state.hashed), state.hashed)
    if (bytesRead === 0) throw fail('tool_failed', 'The downloaded file became shorter.')
    state.hash.update(buffer.subarray(0, bytesRead))
    state.hashed += bytesRead
  }
}

async function attempt(o: DownloadOptions, handle: Handle, state: State): Promise<void> {
  // `If-Range` wants a strong validator; without one we could glue two files together.
  const validator = state.begun?.etag ?? state.begun?.modified
  const resume = state.size > 0 && validator !== undefined
  const { response, pieces } = await follow(o, resume ? { range: `bytes=${state.size}-`, 'if-range': validator } : {})
  try {
    const { statusCode: status = 0, headers } = response
    if (status === 408 || status === 429 || status >= 500) throw new Cut(`the server answered ${status}`)
    const part = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(headers['content-range'] ?? '')
    const goesOn = status === 206 && resume && Number(part?.[1]) === state.size
    if (status === 416 && resume) {
      // It has become shorter, or there is nothing left to fetch: begin anew.
      Object.assign(state, { size: 0, hashed: 0, hash: createHash('sha256'), begun: undefined })
      await handle.truncate(0)
      throw new Cut('the server has another file by now')
    }
    if (status !== 200 && !goesOn)
      throw fail('download_failed', `The server answered ${status} instead of the file.`, {
        field: '/url',
        remedy: 'open the URL in a browser: does it lead to the file itself?',
        retryable: false,
      })
    const length = headers['content-length'] === undefined ? undefined : Number(headers['content-length'])
    if (!goesOn && state.size > 0) {
      o.log?.('the server does not go on in the middle, or has another file by now: from the beginning')
      Object.assign(state, { size: 0, hashed: 0, hash: createHash('sha256') })
      await handle.truncate(0)
    }
    const total = length === undefined ? undefined : state.size + length
    if ((total ?? 0) > o.limit_bytes) throw tooLarge(o)
    if (!goesOn) state.begun = await keepBeginning(o, headers, total)
    await digest(handle, state)
    await receive(o, handle, state, { response, pieces }, total)
  } finally {
    response.destroy()
  }
}

const tooLarge = (o: DownloadOptions): Error =>
  fail('too_large', `The file is larger than ${o.limit_bytes} bytes, which is what may be taken in here.`, {
    remedy: 'make room in the pool, use another one, or raise import_max_gib in wadahd.toml',
  })

async function receive(
  o: DownloadOptions,
  handle: Handle,
  state: State,
  { response, pieces }: Answer,
  total: number | undefined,
): Promise<void> {
  const silence = o.silence_ms ?? SILENCE_MS
  let silent = false
  const timer = setTimeout(() => {
    silent = true
    response.destroy()
  }, silence)
  try {
    for await (const chunk of pieces) {
      o.signal.throwIfAborted()
      timer.refresh()
      if (state.size + chunk.length > o.limit_bytes) throw tooLarge(o)
      for (let done = 0; done < chunk.length; )
        done += (await handle.write(chunk, done, chunk.length - done, state.size + done)).bytesWritten
      state.hash.update(chunk)
      state.size += chunk.length
      state.hashed = state.size
      state.best = Math.max(state.best, state.size)
      o.progress?.(state.size, total)
    }
  } finally {
    clearTimeout(timer)
  }
  o.signal.throwIfAborted()
  if (silent) throw new Cut(`nothing came for ${silence / 1000} s`)
  if (!response.complete) throw new Cut('the connection was cut')
  if (total !== undefined && state.size !== total) throw new Cut(`${state.size} of ${total} bytes came`)
}

/** How much may wait to be written before the server is held up. */
const QUEUE_BYTES = 4 * 2 ** 20

/**
 * The pieces of a body, also those that came just before the connection was cut: a stream's own iterator would drop them. Called as
 * soon as the answer is there, so that no piece and no end comes before anybody listens.
 */
function arriving(response: http.IncomingMessage): AsyncGenerator<Buffer> {
  const queue: Buffer[] = []
  let waiting = 0
  let closed = false
  let wake: () => void = () => {}
  response.on('data', (chunk: Buffer) => {
    queue.push(chunk)
    waiting += chunk.length
    if (waiting > QUEUE_BYTES) response.pause()
    wake()
  })
  response.on('error', () => {})
  response.once('close', () => {
    closed = true
    wake()
  })
  response.once('end', () => {
    closed = true
    wake()
  })
  return (async function* () {
    for (;;) {
      const chunk = queue.shift()
      if (chunk) {
        waiting -= chunk.length
        yield chunk
        if (waiting < QUEUE_BYTES / 2 && response.isPaused()) response.resume()
      } else if (closed) return
      else
        await new Promise<void>((resolve) => {
          wake = resolve
        })
    }
  })()
}

type Answer = { response: http.IncomingMessage; pieces: AsyncGenerator<Buffer> }

/** Sends the request, and follows redirects; the answer's body is not read yet. */
async function follow(o: DownloadOptions, headers: Record<string, string>): Promise<Answer> {
  let url = parseUrl(o.url)
  for (let hop = 0; ; hop++) {
    const answer = await get(o, url, headers)
    const { response } = answer
    const { statusCode: status = 0 } = response
    const location = response.headers.location
    if (![301, 302, 303, 307, 308].includes(status) || location === undefined) return answer
    response.destroy()
    if (hop >= REDIRECTS_MAX)
      throw fail('download_failed', `More than ${REDIRECTS_MAX} redirects.`, { field: '/url', retryable: false })
    if (!URL.canParse(location, url.href)) throw fail('download_failed', 'The server redirects to what is no URL.')
    const next = parseUrl(new URL(location, url).href)
    if (url.protocol === 'https:' && next.protocol === 'http:')
      throw fail('forbidden', `${shownUrl(url)} redirects from https to http (${shownUrl(next)}).`, {
        field: '/url',
        remedy: 'if that is meant, give the http URL yourself, with --sha256',
      })
    o.log?.(`redirected to ${shownUrl(next)}`)
    url = next
  }
}

async function get(o: DownloadOptions, url: URL, headers: Record<string, string>): Promise<Answer> {
  const address = await resolveOnce(url.hostname, o.rules, o.resolve)
  const family = address.includes(':') ? 6 : 4
  const silence = o.silence_ms ?? SILENCE_MS
  return await new Promise((resolve, reject) => {
    const request = (url.protocol === 'https:' ? https : http).request({
      protocol: url.protocol,
      hostname: url.hostname.replace(/^\[|\]$/g, ''),
      path: `${url.pathname}${url.search}`,
      ...(url.port === '' ? {} : { port: Number(url.port) }),
      method: 'GET',
      agent: false,
      family,
      // Whatever is asked again of the name server: this address and no other.
      lookup: (_name, options, done) =>
        options.all
          ? done(null, [{ address, family }])
          : (done as (e: null, a: string, f: number) => void)(null, address, family),
      headers: { 'accept-encoding': 'identity', 'user-agent': 'wadah', ...headers },
      signal: o.signal,
      maxHeaderSize: 32 * 1024,
      ...(o.ca === undefined ? {} : { ca: o.ca }),
    })
    const timer = setTimeout(() => request.destroy(new Cut(`no answer within ${silence / 1000} s`)), silence)
    request.once('response', (response) => {
      clearTimeout(timer)
      resolve({ response, pieces: arriving(response) })
    })
    request.once('error', (error: NodeJS.ErrnoException) => {
      clearTimeout(timer)
      if (o.signal.aborted || error instanceof Cut) return reject(error)
      const code = error.code ?? ''
      if (/^(ERR_TLS|CERT|UNABLE|DEPTH|SELF_SIGNED|ERR_SSL)/.test(code))
        return reject(
          fail('download_failed', `The certificate of ${url.host} is not trusted (${code}).`, {
            field: '/url',
            retryable: false,
          }),
        )
      reject(new Cut(`${url.host} cannot be reached (${code || 'no reason given'})`))
    })
    request.end()
  })
}

const beside = (o: DownloadOptions): string => `${o.file}.json`

async function readBeginning(o: DownloadOptions): Promise<Beginning | undefined> {
  try {
    return JSON.parse(await readFile(beside(o), 'utf8')) as Beginning
  } catch {
    return undefined
  }
}

async function keepBeginning(
  o: DownloadOptions,
  headers: http.IncomingHttpHeaders,
  total: number | undefined,
): Promise<Beginning> {
  const { etag } = headers
  const modified = headers['last-modified']
  const begun: Beginning = {
    url: o.url,
    ...(etag !== undefined && !etag.startsWith('W/') ? { etag } : {}),
    ...(modified === undefined ? {} : { modified }),
    ...(total === undefined ? {} : { total }),
  }
  await writeFile(`${beside(o)}.tmp`, JSON.stringify(begun), { mode: 0o600 })
  await rename(`${beside(o)}.tmp`, beside(o))
  return begun
}

async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const timer = setTimeout(resolve, ms)
    signal.addEventListener(
      'abort',
      () => {
        clearTimeout(timer)
        reject(signal.reason as Error)
      },
      { once: true },
    )
  })
}
