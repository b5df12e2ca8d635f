import { endpoints } from '@wadah/api/endpoints/all'
import { WadahError } from '@wadah/api/fault'
import { setTimeout as delay } from 'node:timers/promises'
import { parseEvents, type ServerEvent } from '@wadah/api/client'
import type { Register } from '../program.ts'
import { safeJson } from '../text/clean.ts'
import type { Cli } from '../cli.ts'

/** Follows what changes, across restarts of the daemon, until Ctrl-C or `--timeout`. */
export const register: Register = (group, cli) => {
  group
    .option('--resource <kinds>', cli.t('opt.events.resource'))
    .option('--from <id>', cli.t('opt.events.from'))
    .action(async (options: { resource?: string; from?: string }) => {
      const api = await cli.api()
      const halt = new AbortController()
      const off = cli.io.onInterrupt(() => halt.abort())
      const signal = AbortSignal.any([halt.signal, cli.signal])
      let last = options.from
      let connected = false
      try {
        while (!signal.aborted) {
          try {
            const stream = await api.open(endpoints.system.events, {
              query: { resource: options.resource },
              headers: { accept: 'text/event-stream', ...(last === undefined ? {} : { 'last-event-id': last }) },
              signal,
            })
            connected = true
            for await (const event of parseEvents(stream)) {
              last = event.id ?? last
              print(cli, event)
            }
          } catch (error) {
            if (signal.aborted) break
            // The first try must work; later the daemon may be restarting.
            if (!connected || (error instanceof WadahError && error.fault.code !== 'unreachable')) throw error
          }
          await delay(1000, undefined, { signal }).catch(() => {})
        }
      } finally {
        off()
      }
    })
}

function print(cli: Cli, event: ServerEvent): void {
  let value: unknown
  try {
    value = JSON.parse(event.data)
  } catch {
    return
  }
  if (cli.out.isJson) {
    cli.io.stdout.write(`${safeJson(value)}\n`)
    return
  }
  const e = value as Record<string, unknown>
  const text = ['resource', 'resource_id', 'change', 'state'].map((k) => e[k]).filter((x) => typeof x === 'string')
  if (text.length > 0) cli.out.line(text.map((x) => cli.out.cell(x as string)).join('  '))
  else cli.out.line(`${cli.out.cell(event.event)}  ${cli.out.cell(event.data)}`)
}
