import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import { randomBytes } from 'node:crypto'
import { hostname } from 'node:os'
import { readText } from '../net/http.ts'
import { storeToken } from '../net/credentials.ts'
import type { Register } from '../program.ts'
import { ask } from '../local/prompt.ts'
import { readSmall } from '../cli.ts'

type Options = { user?: string; passwordFile?: string; scope: string; days: string }

/** Trades a password for a token of its own and keeps that: the password is written nowhere. */
export const register: Register = (group, cli) => {
  group
    .argument('[url]', cli.t('arg.login.url'))
    .option('--user <name>', cli.t('opt.login.user'))
    .option('--password-file <file>', cli.t('opt.login.password_file'))
    .option('--days <n>', cli.t('opt.login.days'), '90')
    .action(async (url: string | undefined, options: Options) => {
      if (url !== undefined) cli.options.server = url
      const api = await cli.api()
      if (api.options.target.kind !== 'url') {
        throw fail('invalid', cli.t('login.socket'), { remedy: 'wadah login https://HOST:7443' })
      }
      const user = options.user ?? (await ask(cli, cli.t('login.user')))
      const password =
        options.passwordFile === undefined
          ? await ask(cli, cli.t('login.password', { user }), { hidden: true })
          : (await readSmall(options.passwordFile, '--password-file')).replace(/\r?\n$/, '')
      delete api.options.token
      const answer = await api.open(endpoints.access.login, { body: { user, password } })
      await readText(answer)
      const cookie = (answer.headers['set-cookie'] ?? []).map((c) => c.split(';')[0]).join('; ')
      const machine = hostname()
        .toLowerCase()
        .replace(/[^a-z0-9-]/g, '-')
        .slice(0, 30)
      const name = `cli-${machine}-${randomBytes(3).toString('hex')}`
      const headers = { cookie, origin: api.options.target.url.origin }
      const token = await api.call(endpoints.tokens.create, {
        body: { name, scope: 'full', days: Number(options.days) },
        headers,
      })
      await api.call(endpoints.access.logout, { headers }).catch(() => {})
      if (token.secret === undefined) throw fail('internal', 'The daemon gave no secret')
      await storeToken(cli.configDir, api.where, token.secret, name)
      if (cli.out.isJson) return cli.out.json({ server: api.where, user, token: name })
      cli.out.line(cli.t('login.done', { server: api.where, user, name }))
    })
}
