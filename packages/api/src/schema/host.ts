/** This machine, as far as a client needs to know it. */
import Type from 'typebox'
import { IdSchema } from '../ids.ts'

export const HostSchema = Type.Object(
  {
    id: IdSchema,
    name: Type.String(),
    version: Type.String({ description: 'version of wadahd' }),
    cpu_model: Type.String(),
    cpus: Type.Integer(),
    memory_mib: Type.Integer(),
    memory_free_mib: Type.Integer(),
    promised_memory_mib: Type.Integer({ description: 'sum of the RAM of the VMs that run' }),
    qemu_version: Type.String(),
    accelerator: Type.Union([Type.Literal('kvm'), Type.Literal('tcg')]),
    accelerator_reason: Type.String({ description: 'what the probe saw' }),
    techniques: Type.Array(Type.Object({ name: Type.String(), available: Type.Boolean(), detail: Type.String() }), {
      description: 'hardware-assisted (KVM), binary translation (TCG), paravirtual devices (virtio)',
    }),
    firmware: Type.Array(Type.Enum(['bios', 'uefi', 'uefi-secure'] as const), {
      description: 'what VMs can have; uefi-secure: with Secure Boot',
    }),
    tpm: Type.Boolean({ description: 'VMs can have a TPM 2.0: swtpm is there' }),
    cgroup: Type.Union([Type.Literal('v1'), Type.Literal('v2'), Type.Literal('none')]),
    root: Type.Boolean(),
    /** What is missing or worse than it could be, each said once with the remedy. */
    attention: Type.Array(
      Type.Object({ about: Type.String(), detail: Type.String(), remedy: Type.Optional(Type.String()) }),
    ),
  },
  { title: 'Host' },
)
export type Host = Type.Static<typeof HostSchema>

export const CheckItemSchema = Type.Object({
  name: Type.String({ description: 'what was looked at: qemu, kvm, cgroup, networks …' }),
  state: Type.Enum(['ok', 'warn', 'lack'] as const, {
    description: 'lack: something that Wadah needs is not there; warn: it works, with less',
  }),
  detail: Type.String(),
  remedy: Type.Optional(Type.String({ description: 'the command that gets it' })),
})
export type CheckItem = Type.Static<typeof CheckItemSchema>
export const HostCheckSchema = Type.Object(
  {
    ok: Type.Boolean({ description: 'nothing is lacking' }),
    items: Type.Array(CheckItemSchema),
    outdated: Type.Array(
      Type.Object({ vm: IdSchema, name: Type.String(), running: Type.String(), installed: Type.String() }),
      { description: 'VMs whose QEMU is another than the one that is installed; a restart gives them the new one' },
    ),
  },
  { title: 'HostCheck' },
)
export type HostCheck = Type.Static<typeof HostCheckSchema>

export const EventSchema = Type.Object(
  {
    id: Type.String({ description: '{store}.{revision}: send it back as Last-Event-ID' }),
    resource: Type.String({ description: 'vm, image, volume, pool, network, firewall-group, rule, job, token' }),
    resource_id: Type.String(),
    generation: Type.Optional(Type.Integer()),
    change: Type.Union([Type.Literal('put'), Type.Literal('delete')]),
    /** State after the change, for VMs and jobs. */
    state: Type.Optional(Type.String()),
  },
  { title: 'Event' },
)
export type Event = Type.Static<typeof EventSchema>
