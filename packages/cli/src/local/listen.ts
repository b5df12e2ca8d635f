/** Where an instance's API listens. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fail } from '@wadah/api/fault'
import { IPV4_PATTERN } from '@wadah/api/schema/common'
import type { Instance } from './instance.ts'
import { parseInteger } from '../text/size.ts'

const IPV4 = new RegExp(IPV4_PATTERN)

/** Port 0: a free one, which the daemon writes down. */
export function parseListen(text: string): { host: string; port: number } {
  const match = /^(\[[0-9a-f:]+\]|[^:\s]+):(\d+)$/i.exec(text)
  const host = match?.[1]?.replace(/^\[|\]$/g, '')
  if (!match || host === undefined || !(IPV4.test(host) || match[1]!.startsWith('[') || host === 'localhost')) {
    throw fail('invalid', `--listen: "${text}" is not ADDRESS:PORT; write for example 127.0.0.1:7443 or 0.0.0.0:7443`, {
      field: '--listen',
    })
  }
  return { host, port: parseInteger(match[2]!, '--listen', 0, 65_535) }
}

/** Where the API of the running daemon is, as it wrote it at its start; `ADDRESS:PORT`. */
export async function listenOf(instance: Instance): Promise<string | undefined> {
  const text = (await readFile(join(instance.data, 'url'), 'utf8').catch(() => '')).trim()
  return URL.canParse(text) ? new URL(text).host : undefined
}
