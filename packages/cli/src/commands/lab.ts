import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import { cut, heal, killHost, labDown, labInstance, labUp, loadLab, needLab, saveLab, startHost } from '../lab/lab.ts'
import { pidsOf } from '../lab/net.ts'
import { hostOf } from '../lab/plan.ts'
import { answers } from '../local/daemon.ts'
import type { Register } from '../program.ts'
import { parseInteger } from '../text/size.ts'

const NAME = 'lab'

/** Several hosts on this machine, each with a network, an identity and a daemon of its own: for trying a cluster, and for its tests. */
export const register: Register = (group, cli) => {
  const { t, out } = cli
  const verb = (usage: string, key: Parameters<typeof t>[0]) =>
    group.command(usage).description(t(key)).option('--lab <name>', t('opt.lab.name'), NAME)

  verb('up', 'cmd.lab.up')
    .option('--hosts <n>', t('opt.lab.hosts'), '3')
    .option('--link <rate>', t('opt.lab.link'))
    .option('--delay <time>', t('opt.lab.delay'))
    .option('--apart', t('opt.lab.apart'))
    .action(async (o: { lab: string; hosts: string; link?: string; delay?: string; apart?: boolean }) => {
      const hosts = parseInteger(o.hosts, '--hosts', 1, 9)
      const wish = { name: o.lab, hosts, rate: o.link, delay: o.delay, cluster: o.apart !== true }
      const lab = await labUp(cli, wish, (text) => out.note(text))
      if (out.isJson) return out.json(view(lab))
      out.line(t('lab.up', { socket: labInstance(cli, lab.hosts[0] as never).socket }))
    })

  verb('status', 'cmd.lab.status').action(async (o: { lab: string }) => {
    const lab = await needLab(o.lab)
    const rows = await Promise.all(
      lab.hosts.map(async (host) => {
        const instance = labInstance(cli, host)
        const [pids, version] = await Promise.all([pidsOf(host), answers(cli, instance)])
        return { ...host, processes: pids.length, daemon: version !== undefined, socket: instance.socket }
      }),
    )
    if (out.isJson) return out.json({ ...view(lab), hosts: rows })
    await out.table(
      [t('col.name'), t('col.address'), t('col.state'), t('lab.processes'), 'socket'],
      rows.map((r) => [
        r.name,
        r.address,
        r.daemon ? 'up' : r.processes > 0 ? 'no daemon' : 'off',
        String(r.processes),
        r.socket,
      ]),
    )
    for (const [a, b] of lab.cuts) out.note(t('lab.is_cut', { a, b }))
  })

  verb('cut <a> <b>', 'cmd.lab.cut').action(async (a: string, b: string, o: { lab: string }) => {
    const lab = await needLab(o.lab)
    const [one, two] = [hostOf(lab, a), hostOf(lab, b)]
    if (one === two) throw fail('invalid', 'Two hosts are wanted.', { field: 'b' })
    await cut(lab, one, two)
    if (out.isJson) return out.json({ cuts: lab.cuts })
    out.line(t('lab.is_cut', { a, b }))
  })

  verb('heal [a] [b]', 'cmd.lab.heal').action(
    async (a: string | undefined, b: string | undefined, o: { lab: string }) => {
      const lab = await needLab(o.lab)
      await heal(lab, a !== undefined && b !== undefined ? [hostOf(lab, a), hostOf(lab, b)] : undefined)
      if (out.isJson) return out.json({ cuts: lab.cuts })
      out.line(t('lab.healed'))
    },
  )

  verb('kill <host>', 'cmd.lab.kill').action(async (name: string, o: { lab: string }) => {
    const n = await killHost(hostOf(await needLab(o.lab), name))
    if (out.isJson) return out.json({ host: name, ended: n })
    out.line(t('lab.killed', { host: name, n }))
  })

  verb('start <host>', 'cmd.lab.start').action(async (name: string, o: { lab: string }) => {
    const lab = await needLab(o.lab)
    await startHost(cli, lab, hostOf(lab, name))
    const api = await cli.api({ socket: labInstance(cli, hostOf(lab, name)).socket })
    const { version } = await api.call(endpoints.system.ping)
    if (out.isJson) return out.json({ host: name, version })
    out.line(t('lab.started', { host: name, address: hostOf(lab, name).address }))
  })

  verb('down', 'cmd.lab.down').action(async (o: { lab: string }) => {
    const lab = await loadLab(o.lab)
    if (!lab) return out.isJson ? out.json({ removed: false }) : out.note(t('lab.none'))
    const problems = await labDown(cli, lab)
    if (problems.length > 0) {
      await saveLab(lab)
      throw fail('tool_failed', problems.join('\n'), { remedy: 'wadah lab down', effect: 'partial' })
    }
    if (out.isJson) return out.json({ removed: true })
    out.line(t('lab.down'))
  })
}

const view = (lab: Awaited<ReturnType<typeof needLab>>) => ({
  lab: lab.name,
  hosts: lab.hosts.map(({ name, address, namespace, instance }) => ({ name, address, namespace, instance })),
  cuts: lab.cuts,
  cpus: lab.cpus,
  memory_mib: lab.memory_mib,
  link: lab.link,
})
