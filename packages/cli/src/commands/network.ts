import type { Register } from '../program.ts'
import { create } from './network/create.ts'
import { delete_ } from './network/delete.ts'
import { list } from './network/list.ts'
import { show } from './network/show.ts'

export const register: Register = (group, cli) => {
  for (const verb of [list, show, create, delete_]) verb(group, cli)
}
