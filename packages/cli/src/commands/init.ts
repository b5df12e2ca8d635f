/** `wadah init`: the daemon starts with the machine, and guests shut down before it does. `--remove` takes that back. */
import { existsSync } from 'node:fs'
import { fail } from '@wadah/api/fault'
import type { Cli } from '../cli.ts'
import { daemonProgram, findDaemon, stopDaemon } from '../local/daemon.ts'
import { type Instance, namedInstance } from '../local/instance.ts'
import { parseListen } from '../local/listen.ts'
import { hasSystemd, isActive, removeUnit, systemctl, writeUnit } from '../local/systemd.ts'
import { daemonUnit, guestsUnit, type UnitOptions, unitNames } from '../local/units.ts'
import type { Register } from '../program.ts'

type Options = { instance: string; data?: string; listen?: string; config?: string; remove?: boolean; print?: boolean }

export const register: Register = (group, cli) => {
  const { t } = cli
  group
    .option('--instance <name>', t('opt.up.instance'), 'default')
    .option('--data <dir>', t('opt.up.data'))
    .option('--listen <address:port>', t('opt.up.listen'))
    .option('--config <file>', t('opt.up.config'))
    .option('--print', t('opt.init.print'))
    .option('--remove', t('opt.init.remove'))
    .action(async (o: Options) => {
      const uid = process.getuid?.() ?? 0
      const instance = namedInstance(cli, o)
      if (o.listen !== undefined) parseListen(o.listen)
      const units: UnitOptions = { home: cli.io.home, instance, listen: o.listen, config: o.config }
      if (o.print) return print(cli, units)
      if (uid !== 0) throw fail('forbidden', t('init.root'), { remedy: 'sudo wadah init' })
      if (!hasSystemd()) throw fail('host_lacks', t('init.no_systemd'), { remedy: t('init.by_hand') })
      if (o.remove) await remove(cli, units)
      else await install(cli, units)
    })
}

function print(cli: Cli, units: UnitOptions): void {
  const { daemon, guests } = unitNames(units.instance)
  if (cli.out.isJson) return cli.out.json({ [daemon]: daemonUnit(units), [guests]: guestsUnit(units) })
  cli.io.stdout.write(
    `# /etc/systemd/system/${daemon}\n${daemonUnit(units)}\n# /etc/systemd/system/${guests}\n${guestsUnit(units)}`,
  )
}

async function install(cli: Cli, units: UnitOptions): Promise<void> {
  const { t } = cli
  const { daemon, guests } = unitNames(units.instance)
  daemonProgram(cli)
  const changed = await writeUnit(daemon, daemonUnit(units))
  const guestsChanged = await writeUnit(guests, guestsUnit(units))
  await systemctl('daemon-reload')
  const active = await isActive(daemon)
  // One that `wadah up` has started would be in the way; its VMs run on and are adopted.
  if (!active && (await findDaemon(units.instance))) await stopDaemon(cli, units.instance)
  await systemctl('enable', daemon, guests)
  if (active && changed) await systemctl('restart', daemon)
  else await systemctl('start', daemon)
  await systemctl('start', guests)
  if (cli.out.isJson)
    return cli.out.json({ units: [daemon, guests], changed: changed || guestsChanged, restarted: active && changed })
  cli.out.line(t(changed || guestsChanged ? 'init.done' : 'init.was_done', { daemon, guests }))
  cli.out.note(t('init.next'))
}

async function remove(cli: Cli, units: UnitOptions): Promise<void> {
  const { daemon, guests } = unitNames(units.instance)
  const there = exists(units.instance)
  if (there.guests) {
    // Its end shuts guests down; what is taken away here is only the unit.
    await writeUnit(guests, guestsUnit(units, false))
    await systemctl('daemon-reload')
    await systemctl('disable', '--now', guests)
    await removeUnit(guests)
  }
  if (there.daemon) {
    await systemctl('disable', '--now', daemon)
    await removeUnit(daemon)
  }
  await systemctl('daemon-reload')
  const any = there.daemon || there.guests
  if (cli.out.isJson) return cli.out.json({ removed: any ? [daemon, guests] : [] })
  cli.out.line(cli.t(any ? 'init.removed' : 'init.was_removed', { daemon, guests }))
}

function exists(instance: Instance): { daemon: boolean; guests: boolean } {
  const { daemon, guests } = unitNames(instance)
  return { daemon: existsSync(`/etc/systemd/system/${daemon}`), guests: existsSync(`/etc/systemd/system/${guests}`) }
}
