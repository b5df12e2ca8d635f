/** Whatever the sources tell people to type is a command with options that there are. */
import { globSync, readFileSync } from 'node:fs'
import { relative } from 'node:path'
import type { Command } from 'commander'
import { expect, test } from 'vitest'
import type { Cli } from '../src/cli.ts'
import { buildProgram, GROUPS, loadGroup } from '../src/program.ts'

const ROOT = `${import.meta.dirname}/../../..`
/** Its name in a sentence or in another program's arguments; or what the shells' completion calls. */
const PROSE = /^wadah (?:-|X|__complete|(?:or|met|atau|menemui)\b)/

/** Comments, which name what was, and the insides of `${…}`, which name what there is. */
const bare = (source: string) =>
  source.replaceAll(/^\s*(\/\*\*?[\s\S]*?\*\/|\/\/.*)$/gm, '').replaceAll(/\$\{(?:[^{}]|\{[^{}]*\})*\}/g, 'X')

const commandsIn = (source: string): string[] =>
  [...bare(source).matchAll(/\bwadah(?: (?:--)?[\p{L}\d_…-]+(?=[ ,;:.)'"`\]\n\\=|]|$)(?:=\S+)?)+/gu)].map((m) => m[0])

/** What is wrong with it; undefined when it can be typed. */
async function wrong(program: Command, cli: Cli, text: string): Promise<string | undefined> {
  let command = program
  for (const word of text.split(' ').slice(1)) {
    if (word === '--') return undefined
    if (word.startsWith('-') && word !== '-' && word !== '--X') {
      const [option] = word.split('=')
      const known = [...command.options, ...program.options].flatMap((o) => [o.long, o.short])
      if (!known.includes(option)) return `${command.name()} has no option ${option}`
      continue
    }
    // Names stand for themselves, and may be left out.
    if (command.commands.length === 0 || /^[A-Z…-]/.test(word)) continue
    const next = command.commands.find((c) => c.name() === word || c.aliases().includes(word))
    if (!next) return `there is no ${text}`
    command = next
    await loadGroup(command, cli)
  }
  return undefined
}

const cli = {
  t: (key: string) => key,
  out: {},
  io: { stdout: {}, stderr: {} },
  configure: () => undefined,
} as never as Cli

test('every command that is named can be typed', async () => {
  const program = buildProgram(cli)
  const files = globSync(`${ROOT}/packages/*/src/**/*.{ts,tsx}`).filter((f) => !f.includes('/testing/'))
  const found = files.flatMap((file) =>
    commandsIn(readFileSync(file, 'utf8')).map((text) => ({ file: relative(ROOT, file), text })),
  )
  expect(found.length).toBeGreaterThan(200)
  const problems: string[] = []
  for (const { file, text } of found) {
    if (PROSE.test(text)) continue
    const why = await wrong(program, cli, text)
    if (why !== undefined) problems.push(`${file}: "${text}": ${why}`)
  }
  expect(problems).toEqual([])
})

test('what can not be typed is found', async () => {
  const program = buildProgram(cli)
  const check = async (source: string) => await Promise.all(commandsIn(source).map((text) => wrong(program, cli, text)))
  expect(await check("'restart it first: wadah vm restart NAME'")).toEqual(['there is no wadah vm restart NAME'])
  expect(await check('`wadah vm stat ${vm.name}`, wadah vmm')).toEqual([
    'there is no wadah vm stat X',
    'there is no wadah vmm',
  ])
  expect(await check("'wadah vm start X --nevr'")).toEqual(['start has no option --nevr'])
  expect(await check("'wadah vm shutdown NAME, then wadah vm start NAME --json'")).toEqual([undefined, undefined])
  expect(GROUPS.length).toBeGreaterThan(20)
})
