import type { Register } from '../program.ts'
import { add } from './image/add.ts'
import { build } from './image/build.ts'
import { create } from './image/create.ts'
import { delete_ } from './image/delete.ts'
import { export_ } from './image/export.ts'
import { import_ } from './image/import.ts'
import { list } from './image/list.ts'
import { recipes } from './image/recipes.ts'
import { show } from './image/show.ts'
import { unwarm, warm } from './image/warm.ts'

export const register: Register = (group, cli) => {
  for (const verb of [list, show, recipes, build, import_, create, export_, add, warm, unwarm, delete_])
    verb(group, cli)
}
