/** Runs one command line and says how it ended. */
import { CommanderError } from 'commander'
import { toFault, WadahError, fault } from '@wadah/api/fault'
import { Cli, type Io } from './cli.ts'
import { EXIT, exitCode } from './exit.ts'
import { printFault } from './out/fault.ts'
import { buildProgram } from './program.ts'
import { usageFault } from './usage.ts'

/** Returns the exit code; throws only what is a mistake of the program itself. */
export async function run(argv: string[], io: Io): Promise<number> {
  const cli = new Cli(io)
  try {
    cli.configure(scanGlobals(argv))
    await buildProgram(cli).parseAsync(argv, { from: 'user' })
    return cli.exit
  } catch (error) {
    return report(error, cli)
  }
}

function report(error: unknown, cli: Cli): number {
  if (error instanceof CommanderError) {
    if (error.exitCode === 0) return EXIT.ok
    // Help was asked for by leaving out the verb: it is printed already.
    if (error.code === 'commander.help') return EXIT.usage
    printFault(usageFault(error, cli.t), cli.out, cli.t)
    return EXIT.usage
  }
  const exit = (error as { exit?: unknown } | undefined)?.exit
  if (typeof exit === 'number') return exit
  if (error instanceof WadahError) {
    printFault(error.fault, cli.out, cli.t)
    return exitCode(error.fault.code)
  }
  if (error instanceof Error && (error.name === 'TimeoutError' || error.name === 'AbortError')) {
    printFault(
      fault('timeout', `Not ended within --timeout ${cli.options.timeout ?? ''}`.trim(), { effect: 'unknown' }),
      cli.out,
      cli.t,
    )
    return EXIT.timeout
  }
  if (cli.io.env['WADAH_DEBUG']) cli.io.stderr.write(`${(error as Error)?.stack ?? String(error)}\n`)
  const message = error instanceof Error ? error.message : String(error)
  printFault(
    { ...toFault(error), detail: cli.t('internal.cli', { message }), remedy: cli.t('internal.debug') },
    cli.out,
    cli.t,
  )
  return EXIT.failed
}

/** What is needed before parsing: the language of help, and how an error in parsing is shown. */
function scanGlobals(argv: string[]): { lang?: string; json?: boolean; color?: boolean } {
  const end = argv.indexOf('--')
  const own = end < 0 ? argv : argv.slice(0, end)
  const at = own.findIndex((a) => a === '--lang' || a.startsWith('--lang='))
  const lang = at < 0 ? undefined : own[at] === '--lang' ? own[at + 1] : own[at]!.slice('--lang='.length)
  return {
    ...(lang === undefined ? {} : { lang }),
    ...(own.includes('--json') ? { json: true } : {}),
    ...(own.includes('--no-color') ? { color: false } : {}),
  }
}
