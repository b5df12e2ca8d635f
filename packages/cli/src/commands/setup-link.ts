import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../program.ts'

/** A new one-time link; only over the socket, so only for who may use that. */
export const register: Register = (group, cli) => {
  group.action(async () => {
    const api = await cli.api()
    const link = await api.call(endpoints.access.setupCode)
    if (cli.out.isJson) return cli.out.json(link)
    cli.out.line(cli.out.cell(link.url))
    cli.out.note(cli.t('setup_link.until', { at: link.expires_at }))
  })
}
