/** Answers `wadah __complete -- WORD…`: what could stand for the last word. Never fails, never asks, never waits long. */
import { endpoints } from '@wadah/api/endpoints/all'
import type { Command, Option } from 'commander'
import type { Cli } from '../cli.ts'
import type { Api } from '../net/api.ts'

/** Name of an argument or option value → the names it can take. */
const NAMES: Record<string, (api: Api, signal: AbortSignal) => Promise<string[]>> = {
  vm: async (api, signal) => names(await api.call(endpoints.vms.list, { query: { limit: 1000 }, signal })),
  image: async (api, signal) => names(await api.call(endpoints.images.list, { query: { limit: 1000 }, signal })),
  recipe: async (api, signal) => names(await api.call(endpoints.images.recipes, { signal })),
  pool: async (api, signal) => names(await api.call(endpoints.pools.list, { query: { limit: 1000 }, signal })),
  volume: async (api, signal) => names(await api.call(endpoints.volumes.list, { query: { limit: 1000 }, signal })),
  network: async (api, signal) => names(await api.call(endpoints.networks.list, { query: { limit: 1000 }, signal })),
  'firewall-group': async (api, signal) =>
    names(await api.call(endpoints.firewallGroups.list, { query: { limit: 1000 }, signal })),
  rule: async (api, signal) => names(await api.call(endpoints.rules.list, { query: { limit: 1000 }, signal })),
  host: async (api, signal) => (await api.call(endpoints.cluster.get, { signal })).hosts.map((h) => h.name),
  token: async (api, signal) => names(await api.call(endpoints.tokens.list, { signal })),
  job: async (api, signal) =>
    (await api.call(endpoints.jobs.list, { query: { limit: 100 }, signal })).items.map((j) => j.id),
}
const FIXED: Record<string, readonly string[]> = {
  shell: ['bash', 'zsh', 'fish'],
  lang: ['en', 'id'],
  scope: ['read', 'full'],
  format: ['qcow2', 'raw'],
  'rule-kind': ['together', 'apart', 'on', 'not-on'],
  kind: ['nat', 'user', 'bridge', 'linked', 'full'],
}
const ANSWER_MS = 1500

const names = (page: { items: { name: string }[] }): string[] => page.items.map((i) => i.name)

/** Fills a group of commands with its verbs. */
export type LoadGroup = (command: Command, cli: Cli) => Promise<void>

/** @param words all words after `wadah`, the last one being typed (maybe empty) */
export async function complete(program: Command, cli: Cli, words: string[], loadGroup: LoadGroup): Promise<string[]> {
  const typed = words.at(-1) ?? ''
  let command = program
  const operands: string[] = []
  const options: Record<string, string> = {}
  let pending: Option | undefined
  for (const word of words.slice(0, -1)) {
    if (pending) {
      options[pending.attributeName()] = word
      pending = undefined
    } else if (word === '--') {
      return []
    } else if (word.startsWith('-')) {
      pending = word.includes('=') ? undefined : findOption(command, program, word)
      if (pending && !pending.required && !pending.optional) pending = undefined
    } else {
      const next =
        operands.length === 0
          ? command.commands.find((c) => c.name() === word || c.aliases().includes(word))
          : undefined
      if (next) {
        command = next
        await loadGroup(command, cli)
      } else operands.push(word)
    }
  }
  cli.configure({ ...options, quiet: true })
  const found = pending
    ? await namesFor(/[<[]([\w-]+)/.exec(pending.flags)?.[1], cli)
    : typed.startsWith('-')
      ? optionNames(command, program)
      : operands.length > 0 && command.commands.length > 0
        ? []
        : [...subcommands(command), ...(await namesFor(argumentAt(command, operands.length), cli))]
  // A word that was given already is no second one.
  return found.filter((w) => w.startsWith(typed) && !operands.includes(w) && /^[\x21-\x7e]+$/.test(w))
}

/** The last argument may stand for any number of words. */
function argumentAt(command: Command, n: number): string | undefined {
  const last = command.registeredArguments.at(-1)
  return (command.registeredArguments[n] ?? (last?.variadic ? last : undefined))?.name()
}

const subcommands = (command: Command): string[] =>
  command
    .createHelp()
    .visibleCommands(command)
    .map((c) => c.name())

function findOption(command: Command, program: Command, word: string): Option | undefined {
  return [...command.options, ...program.options].find((o) => o.long === word || o.short === word)
}

function optionNames(command: Command, program: Command): string[] {
  const all = command === program ? program.options : [...command.options, ...program.options]
  return all.filter((o) => !o.hidden).map((o) => o.long ?? '')
}

async function namesFor(what: string | undefined, cli: Cli): Promise<string[]> {
  if (what === undefined) return []
  if (FIXED[what]) return [...FIXED[what]]
  const ask = NAMES[what]
  if (!ask) return []
  try {
    return await ask(await cli.api(), AbortSignal.timeout(ANSWER_MS))
  } catch {
    return []
  }
}
