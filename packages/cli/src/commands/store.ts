import type { Register } from '../program.ts'
import { backup } from './store/backup.ts'
import { restore } from './store/restore.ts'

export const register: Register = (group, cli) => {
  backup(group, cli)
  restore(group, cli)
}
