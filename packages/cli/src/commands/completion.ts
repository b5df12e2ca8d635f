import { fail } from '@wadah/api/fault'
import { SCRIPTS } from '../completion/scripts.ts'
import type { Register } from '../program.ts'

export const register: Register = (group, cli) => {
  group.argument('<shell>', 'bash, zsh, fish').action((shell: string) => {
    const script = SCRIPTS[shell]
    if (script === undefined)
      throw fail('invalid', `"${shell}": there are scripts for ${Object.keys(SCRIPTS).join(', ')}`)
    cli.out.line(script)
  })
}
