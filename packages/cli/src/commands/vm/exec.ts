import { endpoints } from '@wadah/api/endpoints/all'
import { fail, WadahError } from '@wadah/api/fault'
import { fstatSync } from 'node:fs'
import { constants } from 'node:os'
import type { Register } from '../../program.ts'
import type { Cli, Input } from '../../cli.ts'
import { EXIT } from '../../exit.ts'
import { printFault } from '../../out/fault.ts'
import { collect } from '../options.ts'

const STDIN_MAX = 12 * 2 ** 20
const SOCKET_STDIN_MS = 500

export const exec: Register = (group, cli) => {
  group
    .command('exec <vm> [argv...]')
    .usage('<vm> [--env KEY=VALUE] -- PROGRAM [ARG...]')
    .description(cli.t('cmd.vm.exec'))
    .option('--env <key=value>', cli.t('opt.exec.env'), collect)
    .option('--no-stdin', cli.t('opt.exec.no_stdin'))
    .action(async (vm: string, argv: string[], options: { env?: string[]; stdin?: boolean }) => {
      if (argv.length === 0)
        throw fail('invalid', cli.t('exec.no_program'), { remedy: 'wadah vm exec NAME -- PROGRAM' })
      const timeout_ms = Math.round((cli.timeout_s ?? 60) * 1000)
      try {
        const wanted = options.stdin !== false && !cli.io.stdin.isTTY
        const stdin = wanted && (await somethingComes(cli)) ? await readAll(cli.io.stdin) : undefined
        const api = await cli.api()
        const result = await api.call(endpoints.vms.exec, {
          params: { vm },
          body: {
            argv,
            timeout_ms,
            ...(options.env ? { env: options.env } : {}),
            ...(stdin === undefined || stdin.length === 0 ? {} : { stdin: stdin.toString('base64') }),
          },
          // The daemon keeps the time itself, and says more when it is over.
          signal: new AbortController().signal,
          timeout_ms: timeout_ms + 30_000,
        })
        cli.exit = result.signal === undefined ? (result.exit_code ?? 0) : 128 + result.signal
        if (cli.out.isJson) return cli.out.json(result)
        cli.io.stdout.write(Buffer.from(result.stdout, 'base64'))
        cli.io.stderr.write(Buffer.from(result.stderr, 'base64'))
        if (result.truncated) cli.out.warn(cli.t('exec.truncated'))
        if (result.signal !== undefined) cli.out.warn(cli.t('exec.signal', { signal: signalName(result.signal) }))
      } catch (error) {
        if (!(error instanceof WadahError)) throw error
        // The guest's own codes are 0 to 255: ours must not be taken for one of them.
        printFault(error.fault, cli.out, cli.t)
        cli.exit = EXIT.exec
      }
    })
}

function signalName(number: number): string {
  return Object.entries(constants.signals).find(([, n]) => n === number)?.[0] ?? String(number)
}

/**
 * A program that starts us may leave an open socket as our standard input and never write to it (Node's execFile does);
 * shells give files and pipes, which are always read to their end.
 */
async function somethingComes(cli: Cli): Promise<boolean> {
  const { stdin } = cli.io
  const { fd } = stdin as { fd?: number }
  if (fd === undefined || !fstatSync(fd).isSocket()) return true
  const came = await new Promise<boolean>((resolve) => {
    const timer = setTimeout(() => resolve(false), SOCKET_STDIN_MS)
    const yes = () => {
      clearTimeout(timer)
      resolve(true)
    }
    stdin.once('readable', yes).once('end', yes)
  })
  if (!came) {
    stdin.destroy()
    cli.out.note(cli.t('exec.no_stdin'))
  }
  return came
}

async function readAll(stdin: Input): Promise<Buffer> {
  const parts: Buffer[] = []
  let size = 0
  for await (const part of stdin as AsyncIterable<Buffer | string>) {
    const data = typeof part === 'string' ? Buffer.from(part) : part
    size += data.length
    if (size > STDIN_MAX) {
      throw fail('too_large', `Standard input of exec may be up to ${STDIN_MAX} bytes`, {
        remedy: 'wadah vm cp FILE NAME:/tmp/',
      })
    }
    parts.push(data)
  }
  return Buffer.concat(parts)
}
