/** One check of one service with the client an ordinary user would have. */
import { createHash, randomBytes } from 'node:crypto'
import { createWriteStream } from 'node:fs'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import type { Api } from '../net/api.ts'
import { hasProgram, runProgram } from '../local/process.ts'
import { clean } from '../text/clean.ts'
import type { Check, Credentials, ServiceKind } from './plan.ts'

export type Target = {
  host: string
  port: number
  vm: string
  credentials: Credentials
  api: Api | undefined
  signal: AbortSignal
}

/** Client programs the checks use, with the Debian packages they come from. */
const CLIENTS: Record<string, string> = { smbclient: 'smbclient', lp: 'cups-client', pdftotext: 'poppler-utils' }

/** @throws WadahError `host_lacks`, naming the packages */
export async function requireClients(path = process.env['PATH']): Promise<void> {
  const missing: string[] = []
  for (const [program, pkg] of Object.entries(CLIENTS)) if (!(await hasProgram(program, path))) missing.push(pkg)
  if (missing.length > 0) {
    throw fail(
      'host_lacks',
      `The demo proves each server with a real client; this machine lacks: ${missing.join(', ')}`,
      {
        remedy: `apt-get install -y ${missing.join(' ')}`,
      },
    )
  }
}

/** Words of the page that the recipe `web-server` puts there. */
const PAGE_TEXT = 'made by Wadah'
const PAGE_CHARS = 65_536
/** For a printed page to become a file. */
const PRINT_MS = 20_000

export async function check(service: ServiceKind, target: Target): Promise<Check> {
  const folder = await mkdtemp(join(tmpdir(), 'wadah-check-'))
  try {
    return await { smb: checkSmb, ipp: checkIpp, http: checkHttp }[service](target, folder)
  } catch (error) {
    if (target.signal.aborted) throw error
    return { ok: false, detail: clean(error instanceof Error ? error.message : String(error)) }
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** The page of the web server: the one the recipe put there, or whatever its owner has put into that file since. */
async function checkHttp({ host, port, vm, api, signal }: Target, folder: string): Promise<Check> {
  const response = await fetch(`http://${host}:${port}/`, {
    signal: AbortSignal.any([signal, AbortSignal.timeout(5000)]),
    redirect: 'manual',
  })
  const text = (await response.text()).slice(0, PAGE_CHARS)
  if (response.status !== 200) return { ok: false, detail: `HTTP ${response.status}` }
  const good = { ok: true, detail: `HTTP 200, ${Buffer.byteLength(text)} bytes, the expected page` }
  if (text.includes(PAGE_TEXT)) return good
  const other = { ok: false, detail: 'HTTP 200, but not the page this server has' }
  if (!api) return other
  const file = join(folder, 'index.html')
  const problem = await fetchFile({ api, vm, signal, timeout_ms: 0 }, '/var/www/html/index.html', file)
  return problem === undefined && (await readFile(file, 'utf8')).slice(0, PAGE_CHARS) === text ? good : other
}

export const sum = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')

/** The password is in a file of our own, not among the arguments that everybody may read. */
export async function smbArguments(
  { host, port, credentials }: Pick<Target, 'host' | 'port' | 'credentials'>,
  folder: string,
  patience_s: number,
): Promise<string[]> {
  const auth = join(folder, 'auth')
  await writeFile(auth, `username = ${credentials.user}\npassword = ${credentials.password}\n`, { mode: 0o600 })
  return [`//${host}/share`, '-p', String(port), '-A', auth, '-m', 'SMB3', '-t', String(patience_s)]
}

/** Puts a random file on the share, gets it back, compares, removes it. */
async function checkSmb({ host, port, credentials, signal }: Target, folder: string): Promise<Check> {
  const data = randomBytes(256 * 1024)
  const name = `wadah-check-${randomBytes(6).toString('hex')}.bin`
  const sent = join(folder, 'sent')
  const got = join(folder, 'got')
  await writeFile(sent, data)
  const ran = await runProgram(
    'smbclient',
    [
      ...(await smbArguments({ host, port, credentials }, folder, 10)),
      '-c',
      `put ${sent} ${name}; get ${name} ${got}; del ${name}`,
    ],
    { signal, timeout_ms: 30_000, cwd: folder },
  )
  const back = await readFile(got).catch(() => undefined)
  if (!back) return { ok: false, detail: `smbclient: ${lastLine(`${ran.stdout}\n${ran.stderr}`)}` }
  if (sum(back) !== sum(data))
    return { ok: false, detail: 'smbclient: the file that came back is not the one that was put' }
  return {
    ok: true,
    detail: `smbclient: put and get of ${data.length} bytes, SHA-256 ${sum(data).slice(0, 12)}… equal`,
  }
}

/** Prints a page of text, fetches the PDF it became out of the guest, and reads its text. */
async function checkIpp(target: Target, folder: string): Promise<Check> {
  const { host, port, signal } = target
  // A cheap question first: lp itself waits long for a server that is still booting.
  await fetch(`http://${host}:${port}/`, { signal: AbortSignal.any([signal, AbortSignal.timeout(3000)]) }).then((r) =>
    r.body?.cancel(),
  )
  const page = await printPage(target, folder)
  if (typeof page === 'string') return { ok: false, detail: page }
  const problem = await findPrinted(target, page, folder)
  if (problem !== undefined) return { ok: false, detail: problem }
  return { ok: true, detail: `lp: job pdf-${page.job} came out as a PDF with the right text` }
}

/** A page that the queue took; `word` is on it and nowhere else. */
export type Page = { job: string; word: string; path: string }

/** @returns the page, or what was wrong */
export async function printPage({ host, port, signal }: Target, folder: string): Promise<Page | string> {
  const word = `wadah-${randomBytes(6).toString('hex')}`
  const file = join(folder, 'page.txt')
  await writeFile(file, `Wadah prints this page.\nSelamat mencetak: ${word}\n`)
  const title = `check-${word}`
  const env = { ...process.env, LC_ALL: 'C', CUPS_USER: undefined, HOME: folder }
  const ran = await runProgram('lp', ['-h', `${host}:${port}`, '-U', 'wadah', '-d', 'pdf', '-t', title, '--', file], {
    signal,
    timeout_ms: 30_000,
    env,
  })
  const job = /request id is pdf-(\d+)/.exec(ran.stdout)?.[1]
  if (ran.code !== 0 || job === undefined) return `lp: ${lastLine(`${ran.stdout}\n${ran.stderr}`)}`
  return { job, word, path: `/srv/prints/${job}-wadah-${title}.pdf` }
}

/** Waits for the page to come out, takes it away and reads it. @returns what was wrong */
export async function findPrinted(
  { api, vm, signal }: Target,
  { job, word, path }: Page,
  folder: string,
): Promise<string | undefined> {
  if (!api) return 'lp: the job was taken, but the daemon does not answer, so the file cannot be fetched'
  const pdf = join(folder, 'page.pdf')
  const problem = await fetchFile({ api, vm, signal, timeout_ms: PRINT_MS }, path, pdf)
  if (problem !== undefined) return `lp: job pdf-${job} was taken, but ${path} did not come: ${problem}`
  const text = await runProgram('pdftotext', [pdf, '-'], { signal, timeout_ms: 10_000 })
  await api
    .call(endpoints.vms.exec, { params: { vm }, body: { argv: ['rm', '-f', '--', path] }, signal })
    .catch(() => {})
  return text.stdout.includes(word) ? undefined : `pdftotext: the text of job pdf-${job} is not what was printed`
}

type Fetch = { api: Api; vm: string; signal: AbortSignal; timeout_ms: number }

/** Waits for a file in the guest and fetches it; returns why it did not come. */
async function fetchFile(
  { api, vm, signal, timeout_ms }: Fetch,
  path: string,
  to: string,
): Promise<string | undefined> {
  const deadline = Date.now() + timeout_ms
  for (;;) {
    try {
      const call = { params: { vm }, query: { path }, signal, timeout_ms: 15_000 }
      await pipeline(await api.open(endpoints.vms.getFile, call), createWriteStream(to))
      return undefined
    } catch (error) {
      signal.throwIfAborted()
      if (Date.now() >= deadline) return error instanceof Error ? error.message : String(error)
      await delay(500, undefined, { signal })
    }
  }
}

function lastLine(text: string): string {
  return clean(text.trim().split('\n').at(-1) ?? '').slice(0, 300) || 'no answer'
}
