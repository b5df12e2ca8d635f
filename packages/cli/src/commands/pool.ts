import type { Register } from '../program.ts'
import { create } from './pool/create.ts'
import { delete_ } from './pool/delete.ts'
import { edit } from './pool/edit.ts'
import { list } from './pool/list.ts'
import { show } from './pool/show.ts'

export const register: Register = (group, cli) => {
  for (const verb of [list, show, create, edit, delete_]) verb(group, cli)
}
