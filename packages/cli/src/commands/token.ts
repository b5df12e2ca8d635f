import type { Register } from '../program.ts'
import { create } from './token/create.ts'
import { delete_ } from './token/delete.ts'
import { list } from './token/list.ts'

export const register: Register = (group, cli) => {
  for (const verb of [list, create, delete_]) verb(group, cli)
}
