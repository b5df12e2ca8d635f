import { existsSync } from 'node:fs'
import { fail, toFault } from '@wadah/api/fault'
import type { Cli } from '../../cli.ts'
import { removeFolders, removeThroughApi, survivors } from '../../demo/remove.ts'
import { labNameOf } from '../../demo/ground.ts'
import { demoInstance, loadState } from '../../demo/state.ts'
import { answers, purge, startDaemon, stopDaemon } from '../../local/daemon.ts'
import { labDown, labInstance, loadLab } from '../../lab/lab.ts'
import type { LabState } from '../../lab/plan.ts'
import type { Instance } from '../../local/instance.ts'
import type { Register } from '../../program.ts'

export const down: Register = (group, cli) => {
  const { t, out } = cli
  group
    .command('down')
    .description(cli.t('cmd.demo.down'))
    .action(async () => {
      const instance = demoInstance(cli)
      const lab = await loadLab(labNameOf(instance))
      const there =
        lab !== undefined ||
        existsSync(instance.data) ||
        existsSync(instance.run) ||
        (await survivors(instance)).length > 0
      if (!there) {
        if (out.isJson) return out.json({ removed: false })
        return out.line(t('demo.none'))
      }
      out.note(t('demo.removing'))
      if (lab) {
        await removeLab(cli, instance, lab)
        if (out.isJson) return out.json({ removed: true })
        return out.line(t('demo.removed'))
      }
      const problems = await throughApi(cli, instance)
      await stopDaemon(cli, instance)
      // Whatever the API could not reach (or a daemon that will not start left) is found on the machine itself.
      const swept = await purge(cli, instance).catch((error: unknown) => ({ ok: false, detail: toFault(error).detail }))
      if (!swept.ok) {
        for (const problem of problems) out.warn(out.cell(problem))
        // The folders stay: the next try needs them to know what is the demo's.
        throw fail('tool_failed', `Something of the demo may be left: ${swept.detail}`, {
          remedy: 'wadah demo down',
          effect: 'partial',
        })
      }
      await removeFolders(cli, instance)
      if (out.isJson) return out.json({ removed: true })
      out.line(t('demo.removed'))
    })
}

/** Its hosts end as if the plug was pulled: whatever they had goes with them. */
async function removeLab(cli: Cli, instance: Instance, lab: LabState): Promise<void> {
  const problems = await labDown(cli, lab)
  if (problems.length > 0) {
    throw fail('tool_failed', `Something of the demo may be left: ${problems.join('\n')}`, {
      remedy: 'wadah demo down',
      effect: 'partial',
    })
  }
  for (const host of lab.hosts) await removeFolders(cli, labInstance(cli, host))
  await removeFolders(cli, instance)
}

/** A dead daemon is started once more, because it knows best what is its own. */
async function throughApi(cli: Cli, instance: Instance): Promise<string[]> {
  try {
    if ((await answers(cli, instance)) === undefined) {
      await startDaemon(cli, instance, { listen: (await loadState(instance))?.listen })
    }
    return await removeThroughApi(cli, await cli.api({ socket: instance.socket, remedy: 'wadah demo up' }))
  } catch (error) {
    return [toFault(error).detail]
  }
}
