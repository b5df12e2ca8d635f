import type { Register } from '../program.ts'
import { check } from './vm/check.ts'
import { clone } from './vm/clone.ts'
import { console_ } from './vm/console.ts'
import { cp } from './vm/cp.ts'
import { create } from './vm/create.ts'
import { delete_ } from './vm/delete.ts'
import { eject } from './vm/eject.ts'
import { firewall } from './vm/firewall.ts'
import { insert } from './vm/insert.ts'
import { edit } from './vm/edit.ts'
import { exec } from './vm/exec.ts'
import { export_ } from './vm/export.ts'
import { list } from './vm/list.ts'
import { log } from './vm/log.ts'
import { migrate } from './vm/migrate.ts'
import { pause } from './vm/pause.ts'
import { reset } from './vm/reset.ts'
import { resume } from './vm/resume.ts'
import { screenshot } from './vm/screenshot.ts'
import { show } from './vm/show.ts'
import { shutdown } from './vm/shutdown.ts'
import { start } from './vm/start.ts'
import { stop } from './vm/stop.ts'

export const register: Register = (group, cli) => {
  for (const verb of [
    list,
    show,
    create,
    start,
    shutdown,
    stop,
    reset,
    pause,
    resume,
    edit,
    clone,
    migrate,
    delete_,
    exec,
    export_,
    firewall,
    cp,
    console_,
    log,
    screenshot,
    insert,
    eject,
    check,
  ]) {
    verb(group, cli)
  }
}
