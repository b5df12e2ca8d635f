import type { Register } from '../program.ts'
import { show } from './host/show.ts'

export const register: Register = (group, cli) => {
  show(group, cli)
}
