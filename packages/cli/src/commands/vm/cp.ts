import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import type { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import type { Register } from '../../program.ts'
import { openSource, saveTo } from '../../local/files.ts'
import { formatBytes } from '../../text/format.ts'
import { type CopyEnd, parseCopyEnd } from '../../text/specs.ts'
import type { Cli } from '../../cli.ts'
import type { Api } from '../../net/api.ts'

const STREAM_MS = 3_600_000

export const cp: Register = (group, cli) => {
  group
    .command('cp <from> <to>')
    .description(cli.t('cmd.vm.cp'))
    .action(async (fromText: string, toText: string) => {
      const from = parseCopyEnd(fromText)
      const to = parseCopyEnd(toText)
      const api = await cli.api()
      if (from.kind !== 'guest' && to.kind === 'guest') await put(cli, api, from, to)
      else if (from.kind === 'guest' && to.kind !== 'guest') await get(cli, api, from, to)
      else throw fail('invalid', cli.t('cp.one_guest'), { remedy: 'wadah vm cp ./file NAME:/path' })
    })
}

async function put(
  cli: Cli,
  api: Api,
  from: Exclude<CopyEnd, { kind: 'guest' }>,
  to: { vm: string; path: string },
): Promise<void> {
  let path = to.path
  let data: Readable = cli.io.stdin
  let size_bytes: number | undefined
  if (from.kind === 'local') {
    const source = await openSource(from.path)
    data = source.data
    size_bytes = source.size_bytes
    if (path.endsWith('/')) path += source.name
  } else if (path.endsWith('/')) {
    throw fail('invalid', cli.t('cp.pipe_needs_name', { path }))
  }
  await api.call(endpoints.vms.putFile, {
    params: { vm: to.vm },
    query: { path },
    upload: { data, size_bytes },
    timeout_ms: STREAM_MS,
  })
  const size = size_bytes === undefined ? '' : formatBytes(size_bytes)
  if (cli.out.isJson) cli.out.json({ vm: to.vm, path, ...(size_bytes === undefined ? {} : { size_bytes }) })
  else cli.out.note(cli.t('cp.done', { to: `${to.vm}:${path}`, size }))
}

async function get(
  cli: Cli,
  api: Api,
  from: { vm: string; path: string },
  to: Exclude<CopyEnd, { kind: 'guest' }>,
): Promise<void> {
  const response = await api.open(endpoints.vms.getFile, {
    params: { vm: from.vm },
    query: { path: from.path },
    timeout_ms: STREAM_MS,
  })
  if (to.kind === 'pipe') {
    await pipeline(response, cli.io.stdout, { end: false })
    return
  }
  const saved = await saveTo(to.path, from.path, response)
  // A connection that breaks in the middle ends the stream early: never take a part for the whole.
  if (cli.out.isJson) cli.out.json(saved)
  else cli.out.note(cli.t('cp.done', { to: saved.path, size: formatBytes(saved.size_bytes) }))
}
