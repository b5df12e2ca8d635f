import { endpoints } from '@wadah/api/endpoints/all'
import { setTimeout as delay } from 'node:timers/promises'
import type { Register } from '../../program.ts'
import { cleanText } from '../../text/clean.ts'
import { parseInteger } from '../../text/size.ts'

const FOLLOW_MS = 500
const FOLLOW_BYTES = 256 * 1024

export const log: Register = (group, cli) => {
  group
    .command('log <vm>')
    .description(cli.t('cmd.vm.log'))
    .option('-f, --follow', cli.t('opt.log.follow'))
    .option('-n, --bytes <n>', cli.t('opt.log.bytes'))
    .option('--raw', cli.t('opt.log.raw'))
    .action(async (vm: string, options: { follow?: boolean; bytes?: string; raw?: boolean }) => {
      const api = await cli.api()
      const bytes = options.bytes === undefined ? 65_536 : parseInteger(options.bytes, '--bytes', 1, 1024 * 1024)
      const first = await api.call(endpoints.vms.log, { params: { vm }, query: { bytes } })
      if (cli.out.isJson && !options.follow) return cli.out.json(first)
      // A guest may write anything: on a terminal it is shown, not obeyed.
      const write = (text: string) => cli.io.stdout.write(cli.io.stdout.isTTY && !options.raw ? cleanText(text) : text)
      write(first.text)
      if (!options.follow) {
        if (first.text !== '' && !first.text.endsWith('\n') && cli.io.stdout.isTTY) cli.out.line()
        return
      }
      let size = first.size_bytes
      let stop = false
      const halt = new AbortController()
      const off = cli.io.onInterrupt(() => {
        stop = true
        halt.abort()
      })
      try {
        while (!stop) {
          await delay(FOLLOW_MS, undefined, { signal: AbortSignal.any([halt.signal, cli.signal]) })
          const next = await api.call(endpoints.vms.log, { params: { vm }, query: { bytes: FOLLOW_BYTES } })
          write(newPart(next.text, size, next.size_bytes))
          size = next.size_bytes
        }
      } catch (error) {
        if (!stop) throw error
      } finally {
        off()
      }
    })
}

/** What came since the log was `before` bytes long. A log that got shorter was begun anew. */
export function newPart(text: string, before: number, now: number): string {
  if (now === before) return ''
  if (now < before) return text
  const data = Buffer.from(text)
  return data.subarray(Math.max(0, data.length - (now - before))).toString('utf8')
}
