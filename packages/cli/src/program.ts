/** The tree of commands. Only the group that is used is loaded. */
import { Command, Option } from 'commander'
import type { Cli } from './cli.ts'
import type { MessageKey } from './messages/catalogue.ts'
import { version } from './version.ts'

export type Register = (group: Command, cli: Cli) => void
type Group = { name: string; summary: MessageKey; heading: MessageKey; load: () => Promise<{ register: Register }> }

export const GROUPS: readonly Group[] = [
  { name: 'vm', summary: 'cmd.vm', heading: 'help.servers', load: () => import('./commands/vm.ts') },
  { name: 'apply', summary: 'cmd.apply', heading: 'help.servers', load: () => import('./commands/apply.ts') },
  { name: 'image', summary: 'cmd.image', heading: 'help.servers', load: () => import('./commands/image.ts') },
  { name: 'network', summary: 'cmd.network', heading: 'help.servers', load: () => import('./commands/network.ts') },
  { name: 'firewall', summary: 'cmd.firewall', heading: 'help.servers', load: () => import('./commands/firewall.ts') },
  { name: 'pool', summary: 'cmd.pool', heading: 'help.servers', load: () => import('./commands/pool.ts') },
  { name: 'volume', summary: 'cmd.volume', heading: 'help.servers', load: () => import('./commands/volume.ts') },
  { name: 'snapshot', summary: 'cmd.snapshot', heading: 'help.servers', load: () => import('./commands/snapshot.ts') },
  { name: 'job', summary: 'cmd.job', heading: 'help.work', load: () => import('./commands/job.ts') },
  { name: 'events', summary: 'cmd.events', heading: 'help.work', load: () => import('./commands/events.ts') },
  { name: 'rule', summary: 'cmd.rule', heading: 'help.work', load: () => import('./commands/rule.ts') },
  { name: 'host', summary: 'cmd.host', heading: 'help.work', load: () => import('./commands/host.ts') },
  { name: 'cluster', summary: 'cmd.cluster', heading: 'help.work', load: () => import('./commands/cluster.ts') },
  { name: 'store', summary: 'cmd.store', heading: 'help.daemon', load: () => import('./commands/store.ts') },
  { name: 'up', summary: 'cmd.up', heading: 'help.daemon', load: () => import('./commands/up.ts') },
  { name: 'down', summary: 'cmd.down', heading: 'help.daemon', load: () => import('./commands/down.ts') },
  { name: 'init', summary: 'cmd.init', heading: 'help.daemon', load: () => import('./commands/init.ts') },
  { name: 'demo', summary: 'cmd.demo', heading: 'help.daemon', load: () => import('./commands/demo.ts') },
  { name: 'lab', summary: 'cmd.lab', heading: 'help.daemon', load: () => import('./commands/lab.ts') },
  { name: 'login', summary: 'cmd.login', heading: 'help.access', load: () => import('./commands/login.ts') },
  {
    name: 'setup-link',
    summary: 'cmd.setup_link',
    heading: 'help.access',
    load: () => import('./commands/setup-link.ts'),
  },
  { name: 'token', summary: 'cmd.token', heading: 'help.access', load: () => import('./commands/token.ts') },
  {
    name: 'completion',
    summary: 'cmd.completion',
    heading: 'help.other',
    load: () => import('./commands/completion.ts'),
  },
  { name: 'version', summary: 'cmd.version', heading: 'help.other', load: () => import('./commands/version.ts') },
]

/** Builds the program; throws CommanderError instead of ending the process. */
export function buildProgram(cli: Cli): Command {
  const { t } = cli
  const program = new Command('wadah')
  style(program, cli)
  program
    .description(t('help.program'))
    .option('--server <url>', t('opt.server'))
    .option('--socket <path>', t('opt.socket'))
    .option('--token <token>', t('opt.token'))
    .option('--token-file <file>', t('opt.token_file'))
    .option('--fingerprint <sha256>', t('opt.fingerprint'))
    .option('--json', t('opt.json'))
    .option('--quiet', t('opt.quiet'))
    .addOption(new Option('--wait', t('opt.wait')).default(true).hideHelp())
    .option('--no-wait', t('opt.no_wait'))
    .option('--timeout <time>', t('opt.timeout'))
    .option('--lang <lang>', t('opt.lang'))
    .option('--no-color', t('opt.no_color'))
    .version(version(), '--version', t('cmd.version'))
    .helpCommand(false)
    .hook('preAction', () => cli.configure(program.opts()))

  for (const group of GROUPS) {
    const command = style(program.command(group.name), cli).description(t(group.summary)).helpGroup(t(group.heading))
    lazy.set(command, group)
  }
  program.hook('preSubcommand', async (_, command) => await loadGroup(command, cli))

  style(program.command('help [words...]'), cli)
    .description(t('cmd.help'))
    .helpGroup(t('help.other'))
    .action(async (words: string[]) => await showHelp(program, cli, words))
  style(program.command('__complete [words...]', { hidden: true }), cli)
    .allowUnknownOption()
    .action(async (words: string[]) => {
      const { complete } = await import('./completion/complete.ts')
      for (const word of await complete(program, cli, words, loadGroup)) cli.out.line(word)
    })
  return program
}

const lazy = new WeakMap<Command, Group>()
/** Fills a group with its verbs, once. */
export async function loadGroup(command: Command, cli: Cli): Promise<void> {
  const group = lazy.get(command)
  if (!group) return
  lazy.delete(command)
  ;(await group.load()).register(command, cli)
  for (const verb of command.commands) {
    style(verb, cli)
    for (const deeper of verb.commands) style(deeper, cli)
  }
}

/** Same manners everywhere: our words in help, errors thrown and shown by `run`. */
function style(command: Command, cli: Cli): Command {
  const { t } = cli
  const titles: Record<string, string> = {
    'Usage:': t('help.usage'),
    'Options:': t('help.options'),
    'Commands:': t('help.commands'),
    'Arguments:': t('help.arguments'),
    'Global Options:': t('help.globals'),
  }
  return command
    .exitOverride()
    .helpOption('-h, --help', t('opt.help'))
    .helpCommand(false)
    .showSuggestionAfterError(true)
    .configureOutput({
      writeOut: (text) => cli.io.stdout.write(text),
      writeErr: (text) => cli.io.stderr.write(text),
      outputError: () => {},
      getOutHelpWidth: () => cli.io.stdout.columns ?? 100,
      getErrHelpWidth: () => cli.io.stderr.columns ?? 100,
    })
    .configureHelp({ styleTitle: (title) => titles[title] ?? title })
}

async function showHelp(program: Command, cli: Cli, words: string[]): Promise<void> {
  if (words[0] === 'exit-codes') {
    const { printExitCodes } = await import('./commands/exit-codes.ts')
    await printExitCodes(cli)
    return
  }
  let command = program
  for (const word of words) {
    const next = command.commands.find((c) => c.name() === word)
    if (!next)
      return command.error(`error: unknown command '${word}'`, { code: 'commander.unknownCommand', exitCode: 1 })
    command = next
    await loadGroup(command, cli)
  }
  command.outputHelp()
  if (command === program) cli.out.line(`\n${cli.t('help.more')}`)
}
