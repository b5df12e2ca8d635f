/** The one-time link with which the first administrator is made. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Api } from '../net/api.ts'
import type { Instance } from './instance.ts'

/** Undefined once there is an administrator. */
export async function setupLink(_api: Api, instance: Instance): Promise<string | undefined> {
  const text = (await readFile(join(instance.data, 'setup-link'), 'utf8').catch(() => '')).trim()
  return text === '' ? undefined : text
}
