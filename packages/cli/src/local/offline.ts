/** What the daemon's program does while no daemon runs: the daemon is ended for it and started again. VMs run on. */
import { fail } from '@wadah/api/fault'
import type { Cli } from '../cli.ts'
import { daemonArguments, daemonProgram, findDaemon, startDaemon, stopDaemon } from './daemon.ts'
import type { Instance } from './instance.ts'
import { runProgram } from './process.ts'
import { hasUnit, isActive, systemctl } from './systemd.ts'
import { unitNames } from './units.ts'

/** `input` goes to its stdin: what may not stand in argv. @returns what it said, as JSON */
export async function offline<T>(
  cli: Cli,
  instance: Instance,
  args: readonly string[],
  o: { input?: string; config?: string; timeout_ms: number },
): Promise<T> {
  const running = await findDaemon(instance)
  const option = (name: string) => {
    const at = running?.argv.indexOf(name) ?? -1
    return at < 0 ? undefined : running?.argv[at + 1]
  }
  const start = { listen: option('--listen'), config: option('--config') ?? o.config }
  const unit = hasUnit(instance) && (await isActive(unitNames(instance).daemon))
  if (unit) await systemctl('stop', unitNames(instance).daemon)
  else if (running) await stopDaemon(cli, instance)
  try {
    const own = daemonArguments(instance, { config: start.config })
    const [file = '', ...rest] = [...(instance.enter ?? []), daemonProgram(cli), ...own, ...args]
    const ran = await runProgram(file, rest, {
      timeout_ms: o.timeout_ms,
      ...(o.input === undefined ? {} : { input: o.input }),
    })
    if (ran.code !== 0) {
      const text = ran.stderr.replace(/^wadahd: /, '').trim()
      // The remedy is its last line, set in by two.
      const cut = text.lastIndexOf('\n  ')
      const [detail, remedy] = cut < 0 ? [text, undefined] : [text.slice(0, cut), text.slice(cut + 3)]
      throw fail('tool_failed', detail, remedy === undefined ? {} : { remedy })
    }
    return JSON.parse(ran.stdout) as T
  } finally {
    if (unit || running) await startDaemon(cli, instance, start)
  }
}
