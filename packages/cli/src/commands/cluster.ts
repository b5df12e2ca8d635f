import type { Register } from '../program.ts'
import { init } from './cluster/init.ts'
import { join } from './cluster/join.ts'
import { recover } from './cluster/recover.ts'
import { remove } from './cluster/remove.ts'
import { set } from './cluster/set.ts'
import { show } from './cluster/show.ts'
import { token } from './cluster/token.ts'

export const register: Register = (group, cli) => {
  show(group, cli)
  init(group, cli)
  set(group, cli)
  token(group, cli)
  join(group, cli)
  remove(group, cli)
  recover(group, cli)
}
