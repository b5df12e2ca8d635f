import type { Register } from '../program.ts'
import { down } from './demo/down.ts'
import { status } from './demo/status.ts'
import { up } from './demo/up.ts'

export const register: Register = (group, cli) => {
  for (const verb of [up, status, down]) verb(group, cli)
}
