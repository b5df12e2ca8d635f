import type { Register } from '../program.ts'
import { check } from './host/check.ts'
import { devices } from './host/devices.ts'
import { drain } from './host/drain.ts'
import { list } from './host/list.ts'
import { show } from './host/show.ts'
import { stopGuests } from './host/stop-guests.ts'

export const register: Register = (group, cli) => {
  list(group, cli)
  drain(group, cli)
  show(group, cli)
  check(group, cli)
  devices(group, cli)
  stopGuests(group, cli)
}
