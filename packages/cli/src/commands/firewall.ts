import type { Register } from '../program.ts'
import { create } from './firewall/create.ts'
import { delete_ } from './firewall/delete.ts'
import { edit } from './firewall/edit.ts'
import { list } from './firewall/list.ts'
import { show } from './firewall/show.ts'

export const register: Register = (group, cli) => {
  const groups = group.command('group').description(cli.t('cmd.firewall.group'))
  for (const verb of [list, show, create, edit, delete_]) verb(groups, cli)
}
