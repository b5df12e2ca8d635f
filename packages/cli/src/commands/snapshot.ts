import type { Register } from '../program.ts'
import { create } from './snapshot/create.ts'
import { delete_ } from './snapshot/delete.ts'
import { list } from './snapshot/list.ts'
import { revert } from './snapshot/revert.ts'
import { schedule } from './snapshot/schedule.ts'
import { show } from './snapshot/show.ts'

export const register: Register = (group, cli) => {
  for (const verb of [create, list, show, revert, delete_, schedule]) verb(group, cli)
}
