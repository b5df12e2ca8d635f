import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../program.ts'
import { version } from '../version.ts'

/** The version of the CLI, and of the daemon when one answers. */
export const register: Register = (group, cli) => {
  group.action(async () => {
    const daemon = await cli
      .api()
      .then((api) => api.call(endpoints.system.ping, { timeout_ms: 3000 }))
      .then((pong) => pong.version)
      .catch(() => undefined)
    if (cli.out.isJson) return cli.out.json({ cli: version(), ...(daemon === undefined ? {} : { daemon }) })
    cli.out.line(`wadah ${version()}`)
    cli.out.line(daemon === undefined ? cli.t('version.no_daemon') : `wadahd ${cli.out.cell(daemon)}`)
  })
}
