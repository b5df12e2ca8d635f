import { endpoints } from '@wadah/api/endpoints/all'
import type { Services } from '@wadah/cluster/services'
import type { Consoles } from '../console.ts'
import { type Binding, bind } from '../route.ts'

const e = endpoints.vms

export function vmRoutes({ vms }: Services, consoles: Consoles): Binding[] {
  return [
    bind(e.list, ({ caller, query }) => vms.list(caller, query)),
    bind(e.create, ({ caller, body }) => vms.create(caller, body)),
    bind(e.get, ({ caller, params }) => vms.get(caller, params.vm)),
    bind(e.edit, ({ caller, params, body, generation }) => vms.edit(caller, params.vm, body, generation)),
    bind(e.delete, ({ caller, params, query, generation }) => {
      const { wait: _, ...options } = query
      return vms.delete(caller, params.vm, options, generation)
    }),
    bind(e.start, ({ caller, params }) => vms.start(caller, params.vm)),
    bind(e.stop, ({ caller, params }) => vms.stop(caller, params.vm)),
    bind(e.shutdown, ({ caller, params, body }) => vms.shutdown(caller, params.vm, body)),
    bind(e.migrate, ({ caller, params, body }) => vms.migrate(caller, params.vm, body)),
    bind(e.planMove, ({ caller, params, query, signal }) => vms.planMove(caller, params.vm, query, signal)),
    bind(e.reset, ({ caller, params }) => vms.reset(caller, params.vm)),
    bind(e.pause, ({ caller, params }) => vms.pause(caller, params.vm)),
    bind(e.resume, ({ caller, params }) => vms.resume(caller, params.vm)),
    bind(e.clone, ({ caller, params, body }) => vms.clone(caller, params.vm, body)),
    bind(e.exec, ({ caller, params, body, signal }) => vms.exec(caller, params.vm, body, signal)),
    bind(e.getFile, ({ caller, params, query, signal }) => vms.readFile(caller, params.vm, query.path, signal)),
    bind(e.putFile, ({ caller, params, query, data, signal }) =>
      vms.writeFile(caller, params.vm, query.path, data, signal),
    ),
    bind(e.guest, ({ caller, params, signal }) => vms.guest(caller, params.vm, signal)),
    bind(e.freeze, ({ caller, params, body, signal }) => vms.freeze(caller, params.vm, body.timeout_s ?? 30, signal)),
    bind(e.thaw, ({ caller, params, signal }) => vms.thaw(caller, params.vm, signal)),
    bind(e.console, ({ caller, params, body, request }) =>
      consoles.ticket(vms.checkConsole(caller, params.vm, body), body, request.identity),
    ),
    bind(e.insert, ({ caller, params, body, signal }) =>
      vms.changeMedium(caller, params.vm, params.cdrom, body.image, body.force ?? false, signal),
    ),
    bind(e.eject, ({ caller, params, body, signal }) =>
      vms.changeMedium(caller, params.vm, params.cdrom, undefined, body.force ?? false, signal),
    ),
    bind(e.screenshot, ({ caller, params, signal }) => vms.screenshot(caller, params.vm, signal)),
    bind(e.firewall, ({ caller, params }) => vms.firewall(caller, params.vm)),
    bind(e.log, ({ caller, params, query }) => vms.log(caller, params.vm, query.bytes ?? 65_536)),
    bind(e.health, ({ caller, params, signal }) => vms.health(caller, params.vm, signal)),
  ]
}
