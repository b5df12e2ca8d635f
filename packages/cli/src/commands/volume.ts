import type { Register } from '../program.ts'
import { clone } from './volume/clone.ts'
import { create } from './volume/create.ts'
import { delete_ } from './volume/delete.ts'
import { list } from './volume/list.ts'
import { resize } from './volume/resize.ts'
import { show } from './volume/show.ts'

export const register: Register = (group, cli) => {
  for (const verb of [list, show, create, clone, resize, delete_]) verb(group, cli)
}
