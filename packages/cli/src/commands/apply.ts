/** `wadah apply -f servers.yaml`: what a file declares, made so. */
import { basename, dirname, resolve } from 'node:path'
import { fail, fault, WadahError } from '@wadah/api/fault'
import { endpoints } from '@wadah/api/endpoints/all'
import type { FirewallGroup } from '@wadah/api/schema/firewall'
import type { Network } from '@wadah/api/schema/network'
import type { Image, Pool, Volume } from '@wadah/api/schema/storage'
import type { Vm } from '@wadah/api/schema/vm'
import type { Doc } from '../apply/documents.ts'
import type { Current } from '../apply/plan.ts'
import { type Cli, readSmall } from '../cli.ts'
import { EXIT, exitCode } from '../exit.ts'
import { confirm } from '../local/prompt.ts'
import { type Api, listAll } from '../net/api.ts'
import { faultLines } from '../out/fault.ts'
import type { Register } from '../program.ts'
import { collect } from './options.ts'

type Options = { file?: string[]; set?: string; dryRun?: boolean; yes?: boolean; restart?: boolean; prune?: boolean }

export const register: Register = (group, cli) => {
  const { t } = cli
  group
    .option('-f, --file <file>', t('opt.apply.file'), collect)
    .option('--set <name>', t('opt.apply.set'))
    .option('--dry-run', t('opt.apply.dry_run'))
    .option('-y, --yes', t('opt.yes'))
    .option('--restart', t('opt.apply.restart'))
    .option('--prune', t('opt.apply.prune'))
    .action(async (o: Options) => {
      const files = o.file ?? []
      if (files.length === 0) throw fail('invalid', t('apply.no_file'), { field: '--file', remedy: 'wadah help apply' })
      const docs = await readFiles(cli, files)
      const set = o.set ?? setName(files)
      if (o.prune && set === undefined) throw fail('invalid', t('apply.no_set'), { field: '--set' })
      if (set !== undefined && !/^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$/.test(set))
        throw fail('invalid', `--set: "${set}" is no name: small letters, digits, dots and hyphens`, { field: '--set' })
      const api = await cli.api()
      const [{ makePlan }, { carryOut }, { actionLines, obstacleText }] = await Promise.all([
        import('../apply/plan.ts'),
        import('../apply/carry-out.ts'),
        import('../apply/words.ts'),
      ])
      const plan = makePlan(docs, await readCurrent(api), {
        ...(set === undefined ? {} : { set }),
        prune: o.prune ?? false,
        restart: o.restart ?? false,
      })
      const { actions, obstacles } = plan
      if (obstacles.length > 0) {
        const texts = obstacles.map(obstacleText)
        for (const text of texts.slice(1)) cli.out.warn(text)
        throw new WadahError(
          fault('wrong_state', cli.out.isJson ? texts.join('\n') : `${texts[0]}. ${t('bulk.refused')}.`),
        )
      }
      for (const note of plan.notes) cli.out.note(note)
      if (o.dryRun && cli.out.isJson) return cli.out.json({ actions, notes: plan.notes })
      const say = (text: string) => (o.dryRun ? cli.out.line(text) : cli.out.note(text))
      if (!cli.out.isJson) for (const line of actions.flatMap((a) => actionLines(a, t))) say(paint(cli, line))
      if (actions.length === 0) {
        cli.out.note(t('apply.nothing'))
        if (cli.out.isJson) cli.out.json({ done: [], failed: [] })
        return
      }
      if (o.dryRun) return
      // Asked on a terminal; a script has said what it wants by calling this, unless something is to be deleted.
      const asks = cli.io.stdin.isTTY === true || actions.some((a) => a.do === 'delete')
      if (!o.yes && asks && !(await confirm(cli, t('apply.ask', { n: actions.length })))) {
        return cli.out.note(t('bulk.refused'))
      }
      const outcomes = await carryOut(cli, api, actions, {
        restart: o.restart ?? false,
        report: ({ action: a, fault: why, pending }) => {
          if (cli.out.isJson || cli.options.quiet) return
          const name = `${a.kind} ${a.name}`
          if (why) return cli.out.warn(`${name}: ${faultLines(why, t).join('\n')}`)
          cli.out.line(t(`apply.done_${a.do}`, { name }))
          if (pending) cli.out.note(t('apply.pending', { name, fields: pending.join(', ') }))
        },
      })
      const failed = outcomes.flatMap((x) => (x.fault ? [{ ...brief(x.action), fault: x.fault }] : []))
      if (cli.out.isJson) cli.out.json({ done: outcomes.filter((x) => !x.fault).map((x) => brief(x.action)), failed })
      else cli.out.note(t('apply.summary', { done: outcomes.length - failed.length, failed: failed.length }))
      const codes = new Set(failed.map((f) => exitCode(f.fault.code)))
      cli.exit = codes.size === 0 ? EXIT.ok : codes.size === 1 ? [...codes][0]! : EXIT.failed
    })
}

const brief = (a: { do: string; kind: string; name: string }) => ({ do: a.do, kind: a.kind, name: a.name })
const paint = (cli: Cli, line: { text: string; style?: 'green' | 'yellow' | 'red' | 'cyan' | 'bold' | 'dim' }) =>
  line.style === undefined ? line.text : cli.out.style(line.style, line.text)

/** `servers.yaml` → `servers`: what VMs of this file are labelled with, so that another run knows them again. */
function setName(files: readonly string[]): string | undefined {
  const [first] = files
  if (first === undefined || first === '-') return undefined
  return basename(first)
    .replace(/\.(ya?ml|json)$/i, '')
    .toLowerCase()
}

async function readFiles(cli: Cli, files: readonly string[]): Promise<Doc[]> {
  const { readDocuments } = await import('../apply/documents.ts')
  const docs: Doc[] = []
  const problems: { text: string; field: string }[] = []
  for (const file of files) {
    const read = readDocuments(await readSmall(file, '--file'), file)
    for (const { place, field, text } of read.problems)
      problems.push({
        field,
        text: `${place.file}:${place.line}:${place.column}: ${field === '' ? '' : `${field}: `}${text}`,
      })
    for (const doc of read.docs) {
      const other = docs.find((d) => d.kind === doc.kind && d.name === doc.name && d.at().file !== file)
      if (other)
        problems.push({
          field: '/name',
          text: `${file}:${doc.at('name').line}: ${doc.kind} "${doc.name}" is in ${other.at().file} too`,
        })
      docs.push(doc)
    }
  }
  const [first, ...more] = problems
  if (first) {
    for (const { text } of more) cli.out.warn(text)
    throw fail('invalid', cli.out.isJson ? problems.map((p) => p.text).join('\n') : first.text, {
      ...(first.field === '' ? {} : { field: first.field }),
    })
  }
  for (const doc of docs) {
    if (doc.password_file === undefined) continue
    const file = resolve(doc.at().file === '-' ? '.' : dirname(doc.at().file), doc.password_file)
    const password = (await readSmall(file, 'seed/password_file', 4096)).replace(/\r?\n[^]*$/, '')
    doc.body['seed'] = { ...(doc.body['seed'] as object | undefined), password }
  }
  return docs
}

export async function readCurrent(api: Api): Promise<Current> {
  const page = (cursor: string | undefined) => ({ query: { cursor, limit: 1000 } })
  const [vms, networks, pools, images, volumes, groups] = await Promise.all([
    listAll<Vm>((cursor) => api.call(endpoints.vms.list, page(cursor))),
    listAll<Network>((cursor) => api.call(endpoints.networks.list, page(cursor))),
    listAll<Pool>((cursor) => api.call(endpoints.pools.list, page(cursor))),
    listAll<Image>((cursor) => api.call(endpoints.images.list, page(cursor))),
    listAll<Volume>((cursor) => api.call(endpoints.volumes.list, page(cursor))),
    listAll<FirewallGroup>((cursor) => api.call(endpoints.firewallGroups.list, page(cursor))),
  ])
  return { vms, networks, pools, images, volumes, groups }
}
