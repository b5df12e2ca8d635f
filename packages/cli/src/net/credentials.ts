/** Tokens that `wadah login` got, one file (0600) for all servers. */
import { mkdir, open } from 'node:fs/promises'
import { constants } from 'node:fs'
import { dirname, join } from 'node:path'
import { fail } from '@wadah/api/fault'
import { replaceFile } from './known-servers.ts'

type Credentials = Record<string, { token: string; name: string }>

const fileOf = (configDir: string) => join(configDir, 'credentials.json')

async function load(configDir: string): Promise<Credentials> {
  const file = fileOf(configDir)
  let handle: Awaited<ReturnType<typeof open>>
  try {
    handle = await open(file, constants.O_RDONLY | constants.O_NOFOLLOW)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return {}
    throw fail('invalid', `${file} cannot be read (${(error as NodeJS.ErrnoException).code ?? 'error'})`, {
      cause: error,
    })
  }
  try {
    if (((await handle.stat()).mode & 0o077) !== 0) {
      throw fail('invalid', `${file} holds tokens, but others can read it`, { remedy: `chmod 600 ${file}` })
    }
    const value = JSON.parse(await handle.readFile('utf8')) as unknown
    return typeof value === 'object' && value !== null ? (value as Credentials) : {}
  } catch (error) {
    if (error instanceof SyntaxError)
      throw fail('invalid', `${file} is damaged: it is not JSON`, { remedy: `rm ${file}` })
    throw error
  } finally {
    await handle.close()
  }
}

export async function storedToken(configDir: string, server: string): Promise<string | undefined> {
  const found = (await load(configDir))[server]?.token
  return typeof found === 'string' ? found : undefined
}

export async function storeToken(configDir: string, server: string, token: string, name: string): Promise<void> {
  const all = { ...(await load(configDir)), [server]: { token, name } }
  await mkdir(dirname(fileOf(configDir)), { recursive: true, mode: 0o700 })
  await replaceFile(fileOf(configDir), `${JSON.stringify(all, null, 2)}\n`)
}
