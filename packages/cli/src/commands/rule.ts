import type { Register } from '../program.ts'
import { create } from './rule/create.ts'
import { delete_ } from './rule/delete.ts'
import { list } from './rule/list.ts'
import { show } from './rule/show.ts'

export const register: Register = (group, cli) => {
  for (const verb of [list, show, create, delete_]) verb(group, cli)
}
