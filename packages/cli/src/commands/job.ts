import type { Register } from '../program.ts'
import { cancel } from './job/cancel.ts'
import { list } from './job/list.ts'
import { log } from './job/log.ts'
import { show } from './job/show.ts'
import { wait } from './job/wait.ts'

export const register: Register = (group, cli) => {
  for (const verb of [list, show, log, wait, cancel]) verb(group, cli)
}
