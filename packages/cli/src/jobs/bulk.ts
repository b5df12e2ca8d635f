/** One action on one VM, on several, or on all that a selector chooses: each for itself, with a summary and one exit code. */
import { endpoints } from '@wadah/api/endpoints/all'
import { type Fault, WadahError, fail, toFault } from '@wadah/api/fault'
import type { Job } from '@wadah/api/schema/job'
import type { Vm } from '@wadah/api/schema/vm'
import type { Command } from 'commander'
import type { Cli } from '../cli.ts'
import { EXIT, exitCode } from '../exit.ts'
import { confirm } from '../local/prompt.ts'
import type { MessageKey } from '../messages/catalogue.ts'
import { en } from '../messages/en.ts'
import { type Api, listAll } from '../net/api.ts'
import { Detached, finish, follow, hasEnded, jobFault } from './follow.ts'

export type BulkOptions = { selector?: string; yes?: boolean }
export type BulkAction = {
  verb: string
  /** By name or id. A VM is the answer of an action that is done at once. */
  act: (api: Api, vm: string) => Promise<Job | Vm>
  done: MessageKey
  /** Among several: those that are there already are left alone. */
  reached: (vm: Vm) => boolean
  /** Data may be lost: asked about when it is more than one named VM. */
  destructive?: boolean
}
export type BulkResult = { vm: string; outcome: 'done' | 'already' | 'begun' | 'failed'; job?: string; fault?: Fault }

/** At most so many at work at once: the daemon has lanes of its own. */
const AT_ONCE = 8

/** The argument and the options that every such verb takes. */
export function bulkCommand(group: Command, verb: string, cli: Cli): Command {
  return group
    .command(`${verb} [vm...]`)
    .option('-l, --selector <labels>', cli.t('opt.bulk.selector'))
    .option('-y, --yes', cli.t('opt.yes'))
}

/** Pure: 0 when all went well; the code of the failures when they are of one class, else 1. */
export function bulkExit(results: readonly BulkResult[]): number {
  const codes = new Set(results.flatMap((r) => (r.fault ? [exitCode(r.fault.code)] : [])))
  return codes.size === 0 ? EXIT.ok : codes.size === 1 ? [...codes][0]! : EXIT.failed
}

export async function runBulk(cli: Cli, refs: readonly string[], o: BulkOptions, action: BulkAction): Promise<void> {
  const api = await cli.api()
  const [only] = refs
  if (only !== undefined && refs.length === 1 && o.selector === undefined) return runOne(cli, api, only, action)
  const vms = await choose(cli, api, refs, o.selector)
  const waiting = vms.filter((vm) => !action.reached(vm))
  if (action.destructive && !o.yes && waiting.length > 0) {
    const question = cli.t('bulk.ask', { verb: action.verb, names: waiting.map((vm) => vm.name).join(', ') })
    if (!(await confirm(cli, question))) return cli.out.note(cli.t('bulk.refused'))
  }
  const results = new Map<string, BulkResult>()
  for (const vm of vms) if (action.reached(vm)) results.set(vm.id, { vm: vm.name, outcome: 'already' })
  const queue = [...waiting]
  const worker = async () => {
    for (let vm = queue.shift(); vm; vm = queue.shift()) {
      const result = await one(cli, api, vm, action)
      results.set(vm.id, result)
      say(cli, result, action)
    }
  }
  for (const r of results.values()) say(cli, r, action)
  await Promise.all(Array.from({ length: Math.min(AT_ONCE, waiting.length) }, worker))
  const all = vms.map((vm) => results.get(vm.id)!)
  const count = (outcome: BulkResult['outcome']) => all.filter((r) => r.outcome === outcome).length
  if (cli.out.isJson) cli.out.json({ items: all })
  else if (cli.waits)
    cli.out.note(cli.t('bulk.summary', { done: count('done'), already: count('already'), failed: count('failed') }))
  cli.exit = bulkExit(all)
}

async function runOne(cli: Cli, api: Api, vm: string, action: BulkAction): Promise<void> {
  const answer = await action.act(api, vm)
  if (isJob(answer)) {
    await finish(cli, api, answer, () => cli.t(action.done, { name: vm }))
    return
  }
  if (cli.out.isJson) return cli.out.json(answer)
  if (!cli.options.quiet) cli.out.line(cli.t(action.done, { name: answer.name }))
}

/** All that are named must be there before anything is done to one of them. */
async function choose(cli: Cli, api: Api, refs: readonly string[], selector: string | undefined): Promise<Vm[]> {
  if (refs.length > 0 && selector !== undefined) throw fail('invalid', cli.t('bulk.both'), { field: '--selector' })
  if (selector === undefined) {
    if (refs.length === 0) throw fail('invalid', cli.t('bulk.none'), { remedy: 'wadah vm list' })
    const found = await Promise.all(refs.map((vm) => api.call(endpoints.vms.get, { params: { vm } })))
    return [...new Map(found.map((vm) => [vm.id, vm])).values()]
  }
  const found = await listAll<Vm>((cursor) =>
    api.call(endpoints.vms.list, { query: { selector, cursor, limit: 1000 } }),
  )
  if (found.length === 0) cli.out.note(cli.t('bulk.no_match', { selector }))
  return found
}

async function one(cli: Cli, api: Api, vm: Vm, action: BulkAction): Promise<BulkResult> {
  try {
    const answer = await action.act(api, vm.id)
    if (!isJob(answer)) return { vm: vm.name, outcome: 'done' }
    if (!cli.waits && !hasEnded(answer)) return { vm: vm.name, outcome: 'begun', job: answer.id }
    const job = await follow(cli, api, answer, { silent: true })
    const fault = jobFault(job)
    return { vm: vm.name, job: job.id, ...(fault ? { outcome: 'failed', fault } : { outcome: 'done' }) }
  } catch (error) {
    if (error instanceof Detached || !(error instanceof WadahError)) throw error
    return { vm: vm.name, outcome: 'failed', fault: toFault(error) }
  }
}

function say(cli: Cli, r: BulkResult, action: BulkAction): void {
  if (cli.out.isJson) return
  const { t, out } = cli
  if (r.fault) {
    const key = `fault.${r.fault.code}`
    const title = key in en ? t(key as MessageKey) : r.fault.title
    out.warn(t('bulk.failed', { name: r.vm, title, detail: r.fault.detail }))
    if (r.fault.remedy !== undefined) out.note(t('fault.remedy', { remedy: r.fault.remedy }))
  } else if (r.outcome === 'already') out.note(t('bulk.already', { name: r.vm }))
  else if (r.outcome === 'begun')
    out.line(cli.options.quiet ? (r.job ?? '') : t('bulk.begun', { name: r.vm, id: r.job ?? '' }))
  else if (!cli.options.quiet) out.line(t(action.done, { name: r.vm }))
}

const isJob = (answer: Job | Vm): answer is Job => 'steps' in answer
