import type { Register } from '../program.ts'
import { clone } from './volume/clone.ts'
import { convert } from './volume/convert.ts'
import { create } from './volume/create.ts'
import { delete_ } from './volume/delete.ts'
import { download } from './volume/download.ts'
import { list } from './volume/list.ts'
import { move } from './volume/move.ts'
import { resize } from './volume/resize.ts'
import { show } from './volume/show.ts'
import { upload } from './volume/upload.ts'

export const register: Register = (group, cli) => {
  for (const verb of [list, show, create, clone, resize, upload, download, convert, move, delete_]) verb(group, cli)
}
