/** A virtual server: what is wanted (spec) and what was observed (status). Units: MiB, bytes, bytes per second, ms. */
import Type from 'typebox'
import { IdSchema, NAME_PATTERN, NameSchema, RefSchema } from '../ids.ts'
import { FaultSchema } from '../fault.ts'
import { HostdevSchema } from './devices.ts'
import { FirewallInputSchema, FirewallSchema } from './firewall.ts'
import { SEED_KINDS } from './imports.ts'
import { SnapshotScheduleSchema } from './snapshot.ts'
import { Closed, DescriptionSchema, Ipv4Schema, LabelsSchema, MacSchema, metaFields } from './common.ts'

export const VM_STATES = [
  'absent',
  'prepared',
  'starting',
  'running',
  'paused',
  'suspended',
  'saving',
  'incoming',
  'postcopy-paused',
  'postmigrate',
  'stopping',
  'stopped',
  'panicked',
  'internal-error',
  'unknown',
] as const
export type VmState = (typeof VM_STATES)[number]
export const PAUSED_BY = ['user', 'job', 'io-error', 'qemu'] as const
export type PausedBy = (typeof PAUSED_BY)[number]
export const WANTED = ['running', 'stopped', 'paused'] as const
export type Wanted = (typeof WANTED)[number]

const rate = (what: string) =>
  Type.Integer({ minimum: 1024, maximum: 2 ** 40, description: `${what}, bytes per second` })
const ops = (what: string) => Type.Integer({ minimum: 1, maximum: 10_000_000, description: `${what} per second` })
/** `null` takes a limit away. */
const nullable = <T extends Type.TSchema>(t: T) => Type.Union([t, Type.Null()])

export const DiskLimitsSchema = Closed({
  iops: Type.Optional(nullable(ops('operations'))),
  bytes_per_s: Type.Optional(nullable(rate('reads and writes together'))),
})
export type DiskLimits = Type.Static<typeof DiskLimitsSchema>
export const NicLimitsSchema = Closed({
  in_bytes_per_s: Type.Optional(nullable(rate('to the guest'))),
  out_bytes_per_s: Type.Optional(nullable(rate('from the guest'))),
})
export type NicLimits = Type.Static<typeof NicLimitsSchema>
export const LimitsSchema = Closed({
  cpu_weight: Type.Optional(
    Type.Integer({
      minimum: 1,
      maximum: 10_000,
      description: 'share of CPU among VMs when it is scarce; 100 is usual',
    }),
  ),
  cpu_cap_percent: Type.Optional(
    nullable(Type.Integer({ minimum: 1, maximum: 25_600, description: 'ceiling; 100 = one whole core' })),
  ),
  memory_overhead_mib: Type.Optional(
    Type.Integer({
      minimum: 64,
      maximum: 65_536,
      description: 'what QEMU may use beside the guest RAM before the kernel ends it',
    }),
  ),
})
export type Limits = Type.Static<typeof LimitsSchema>

export const PublishSchema = Closed({
  protocol: Type.Optional(Type.Union([Type.Literal('tcp'), Type.Literal('udp')], { default: 'tcp' })),
  address: Type.Optional(Ipv4Schema),
  port: Type.Integer({ minimum: 1, maximum: 65_535, description: 'port on the host' }),
  to: Type.Integer({ minimum: 1, maximum: 65_535, description: 'port in the guest' }),
})
export type PublishInput = Type.Static<typeof PublishSchema>
export const PublishedSchema = Type.Object({
  protocol: Type.Union([Type.Literal('tcp'), Type.Literal('udp')]),
  address: Ipv4Schema,
  port: Type.Integer(),
  to: Type.Integer(),
})
export type Published = Type.Static<typeof PublishedSchema>

/** QEMU's names of block nodes have 31 characters, and ours hold this one (`vol-NAME.12.f`). */
const driveName = Type.String({
  pattern: NAME_PATTERN,
  maxLength: 16,
  description: 'small letters, digits, hyphens; at most 16 characters',
})
export const DiskInputSchema = Closed({
  name: Type.Optional(driveName),
  volume: Type.Optional(RefSchema),
  size_mib: Type.Optional(Type.Integer({ minimum: 1, maximum: 64 * 1024 * 1024 })),
  pool: Type.Optional(RefSchema),
  format: Type.Optional(Type.Union([Type.Literal('qcow2'), Type.Literal('raw')])),
  limits: Type.Optional(DiskLimitsSchema),
})
export type DiskInput = Type.Static<typeof DiskInputSchema>
export const NicInputSchema = Closed({
  name: Type.Optional(NameSchema),
  network: Type.Optional(RefSchema),
  mac: Type.Optional(MacSchema),
  address: Type.Optional(Ipv4Schema),
  publish: Type.Optional(Type.Array(PublishSchema, { maxItems: 64 })),
  limits: Type.Optional(NicLimitsSchema),
})
export type NicInput = Type.Static<typeof NicInputSchema>

/** First-boot values handed to the guest. The password is a secret: taken in, never given out. */
export const SeedInputSchema = Closed({
  kind: Type.Optional(Type.Enum(SEED_KINDS, { description: 'how it is handed over; otherwise as the image says' })),
  user_data: Type.Optional(
    Type.String({
      minLength: 1,
      maxLength: 64 * 1024,
      description: 'cloud-init user-data, for the kind nocloud; may hold secrets: taken in, never given out',
    }),
  ),
  hostname: Type.Optional(NameSchema),
  user: Type.Optional(Type.String({ pattern: '^[a-z][a-z0-9_-]{0,30}$', description: 'UNIX user name' })),
  password: Type.Optional(
    Type.String({
      minLength: 8,
      maxLength: 128,
      pattern: '^[\\x21-\\x7e]+$',
      description: 'printable ASCII without spaces',
    }),
  ),
  ssh_keys: Type.Optional(
    Type.Array(
      Type.String({
        maxLength: 4096,
        pattern: '^(ssh-|ecdsa-|sk-)[ -~]+$',
        description: 'OpenSSH public key, as in authorized_keys',
      }),
      { maxItems: 16 },
    ),
  ),
})
export type SeedInput = Type.Static<typeof SeedInputSchema>

/** What runs before the operating system. `secure_boot`: only loaders that Microsoft's keys vouch for. */
export const FirmwareSchema = Type.Union([
  Closed({ kind: Type.Literal('bios') }),
  Closed({ kind: Type.Literal('uefi'), secure_boot: Type.Optional(Type.Boolean({ default: false })) }),
])
export type Firmware = Type.Static<typeof FirmwareSchema>
const hostdevs = Type.Array(HostdevSchema, { maxItems: 8, description: 'devices of the host, given as they are' })
const serialPorts = Type.Integer({
  minimum: 1,
  maximum: 4,
  description: 'serial ports; 1 unless said, the first has a log',
})
const tpm = Type.Boolean({ description: 'a TPM 2.0 of its own, empty at first; a clone gets a new one' })
/** In order: names of disks and CD drives. What is not named comes after, disks first. */
const bootOrder = Type.Array(NameSchema, { maxItems: 20, description: 'names of disks and CD drives, first one first' })
export const CdromInputSchema = Closed({
  name: Type.Optional(driveName),
  image: Type.Optional(RefSchema),
})
export type CdromInput = Type.Static<typeof CdromInputSchema>
const MAX_CDROMS = 4
/** Starting with the host, and shutting down with it in the reverse order. */
export const AutostartSchema = Type.Object({
  enabled: Type.Boolean({ description: 'start when the host starts' }),
  order: Type.Integer({ minimum: 0, maximum: 9999, description: 'smaller ones start first and shut down last' }),
  delay_s: Type.Integer({ minimum: 0, maximum: 3600, description: 'seconds to wait before the next order starts' }),
})
export type Autostart = Type.Static<typeof AutostartSchema>
export const AUTOSTART_DEFAULT: Autostart = { enabled: false, order: 100, delay_s: 0 }
const autostart = Closed({
  enabled: Type.Optional(AutostartSchema.properties.enabled),
  order: Type.Optional(AutostartSchema.properties.order),
  delay_s: Type.Optional(AutostartSchema.properties.delay_s),
})
export const RESTARTS = ['never', 'on_failure'] as const
export type RestartPolicy = (typeof RESTARTS)[number]
/** Of VMs of before, too: whoever wants a server to run wants it back. */
export const RESTART_DEFAULT: RestartPolicy = 'on_failure'
const restart = Type.Enum(RESTARTS, {
  description:
    '"on_failure" (usual): when its QEMU ended though nobody asked for it, or its memory was lost in a move, it is started again, at first after 2 s, then ever later, 5 min at most',
})
const protection = Type.Boolean({ description: 'refuse to delete it until this is taken away' })

const cpus = Type.Integer({ minimum: 1, maximum: 256, description: 'virtual CPUs' })
const memoryMib = Type.Integer({ minimum: 16, maximum: 4 * 1024 * 1024, description: 'guest RAM, MiB' })
const cmdline = Type.String({
  maxLength: 2000,
  pattern: '^[\\x20-\\x7e]*$',
  description: 'kernel command line, printable ASCII',
})

export const VmCreateSchema = Closed(
  {
    name: NameSchema,
    description: Type.Optional(DescriptionSchema),
    labels: Type.Optional(LabelsSchema),
    protected: Type.Optional(protection),
    autostart: Type.Optional(autostart),
    restart: Type.Optional(restart),
    snapshot_schedule: Type.Optional(SnapshotScheduleSchema),
    image: Type.Optional(RefSchema),
    host: Type.Optional(
      Type.String({
        minLength: 1,
        maxLength: 253,
        description: 'in a cluster: the host it is to run on; the one with most room that can, unless said',
      }),
    ),
    clone: Type.Optional(Type.Union([Type.Literal('linked'), Type.Literal('full')], { default: 'linked' })),
    pool: Type.Optional(RefSchema),
    disk_mib: Type.Optional(
      Type.Integer({
        minimum: 1,
        maximum: 64 * 1024 * 1024,
        description: 'size of the first disk; at least the size of the image',
      }),
    ),
    cpus: Type.Optional(cpus),
    memory_mib: Type.Optional(memoryMib),
    cmdline: Type.Optional(cmdline),
    disks: Type.Optional(Type.Array(DiskInputSchema, { maxItems: 16, description: 'further disks' })),
    nics: Type.Optional(Type.Array(NicInputSchema, { maxItems: 8 })),
    cdroms: Type.Optional(
      Type.Array(CdromInputSchema, {
        maxItems: MAX_CDROMS,
        description: 'CD drives, empty or with an image of kind iso',
      }),
    ),
    boot_order: Type.Optional(bootOrder),
    firmware: Type.Optional(FirmwareSchema),
    tpm: Type.Optional(tpm),
    serial_ports: Type.Optional(serialPorts),
    hostdevs: Type.Optional(hostdevs),
    firewall: Type.Optional(FirewallInputSchema),
    limits: Type.Optional(LimitsSchema),
    balloon_mib: Type.Optional(Type.Integer({ minimum: 16, maximum: 4 * 1024 * 1024 })),
    seed: Type.Optional(SeedInputSchema),
    start: Type.Optional(Type.Boolean({ default: false })),
    instant: Type.Optional(
      Type.Boolean({
        default: false,
        description: 'goes on from the warm template of the image in place of booting; needs "start"',
      }),
    ),
    wait_ready: Type.Optional(
      Type.Boolean({ default: false, description: 'the job ends when the health check of the recipe passes' }),
    ),
  },
  { title: 'VmCreate' },
)
export type VmCreate = Type.Static<typeof VmCreateSchema>

export const VmEditSchema = Closed(
  {
    name: Type.Optional(NameSchema),
    description: Type.Optional(DescriptionSchema),
    labels: Type.Optional(LabelsSchema),
    protected: Type.Optional(protection),
    autostart: Type.Optional(autostart),
    restart: Type.Optional(restart),
    snapshot_schedule: Type.Optional(nullable(SnapshotScheduleSchema)),
    cpus: Type.Optional(cpus),
    memory_mib: Type.Optional(memoryMib),
    cmdline: Type.Optional(cmdline),
    limits: Type.Optional(LimitsSchema),
    balloon_mib: Type.Optional(nullable(Type.Integer({ minimum: 16, maximum: 4 * 1024 * 1024 }))),
    disks: Type.Optional(
      Type.Array(Closed({ name: NameSchema, limits: DiskLimitsSchema }), {
        maxItems: 16,
        description: 'limits of disks it has',
      }),
    ),
    add_disks: Type.Optional(Type.Array(DiskInputSchema, { maxItems: 16 })),
    remove_disks: Type.Optional(Type.Array(NameSchema, { maxItems: 16, description: 'the volume is kept' })),
    nics: Type.Optional(
      Type.Array(
        Closed({
          name: NameSchema,
          limits: Type.Optional(NicLimitsSchema),
          publish: Type.Optional(
            Type.Array(PublishSchema, { maxItems: 64, description: 'replaces what was published' }),
          ),
          address: Type.Optional(Ipv4Schema),
        }),
        { maxItems: 8 },
      ),
    ),
    add_nics: Type.Optional(Type.Array(NicInputSchema, { maxItems: 8 })),
    remove_nics: Type.Optional(Type.Array(NameSchema, { maxItems: 8 })),
    add_cdroms: Type.Optional(Type.Array(CdromInputSchema, { maxItems: MAX_CDROMS })),
    remove_cdroms: Type.Optional(Type.Array(NameSchema, { maxItems: MAX_CDROMS })),
    boot_order: Type.Optional(bootOrder),
    firmware: Type.Optional(FirmwareSchema),
    tpm: Type.Optional(tpm),
    serial_ports: Type.Optional(serialPorts),
    add_hostdevs: Type.Optional(hostdevs),
    remove_hostdevs: Type.Optional(Type.Array(NameSchema, { maxItems: 8 })),
    firewall: Type.Optional(
      Type.Union([FirewallInputSchema, Type.Null()], { description: 'what is not named stays; null takes it away' }),
    ),
  },
  { title: 'VmEdit', minProperties: 1 },
)
export type VmEdit = Type.Static<typeof VmEditSchema>

export const DiskSchema = Type.Object({
  name: NameSchema,
  volume: IdSchema,
  limits: DiskLimitsSchema,
  /** What the guest sees as the disk's serial number, where that is not the id of the volume: snapshots put new volumes on top. */
  serial: Type.Optional(IdSchema),
})
export type Disk = Type.Static<typeof DiskSchema>
export const NicSchema = Type.Object({
  name: NameSchema,
  network: IdSchema,
  mac: MacSchema,
  address: Type.Optional(Ipv4Schema),
  publish: Type.Array(PublishedSchema),
  limits: NicLimitsSchema,
})
export type Nic = Type.Static<typeof NicSchema>

export const CdromSchema = Type.Object({
  name: NameSchema,
  image: Type.Optional(IdSchema),
})
export type Cdrom = Type.Static<typeof CdromSchema>

export const BootSchema = Type.Union([
  Type.Object({ kind: Type.Literal('disk') }),
  Type.Object({ kind: Type.Literal('kernel'), image: IdSchema, cmdline: Type.String() }),
])
export type Boot = Type.Static<typeof BootSchema>

export const SERVICE_KINDS = ['http', 'smb', 'ipp', 'tcp'] as const
/** What a server made from a recipe offers, so that clients and checks know where to knock. */
export const ServiceSchema = Type.Object({
  kind: Type.Enum(SERVICE_KINDS),
  port: Type.Integer({ minimum: 1, maximum: 65_535 }),
  path: Type.Optional(Type.String({ description: 'http: path; smb: share; ipp: queue' })),
})
export type Service = Type.Static<typeof ServiceSchema>

export const VmSpecSchema = Type.Object({
  cpus: Type.Integer(),
  memory_mib: Type.Integer(),
  machine: Type.Literal('q35'),
  boot: BootSchema,
  disks: Type.Array(DiskSchema),
  nics: Type.Array(NicSchema),
  /** Absent in VMs made before there were such: none, disks in their order, BIOS. */
  cdroms: Type.Optional(Type.Array(CdromSchema)),
  boot_order: Type.Optional(Type.Array(NameSchema)),
  firmware: Type.Optional(FirmwareSchema),
  tpm: Type.Optional(tpm),
  serial_ports: Type.Optional(serialPorts),
  hostdevs: Type.Optional(Type.Array(HostdevSchema)),
  /** Absent: everything passes. */
  firewall: Type.Optional(FirewallSchema),
  limits: LimitsSchema,
  balloon_mib: Type.Union([Type.Integer(), Type.Null()]),
  seed: Type.Object({
    hostname: NameSchema,
    user: Type.Optional(Type.String()),
    has_password: Type.Boolean(),
    ssh_keys: Type.Array(Type.String()),
    kind: Type.Optional(Type.Enum(SEED_KINDS)),
    has_user_data: Type.Optional(Type.Boolean()),
  }),
  image: Type.Optional(IdSchema),
  recipe: Type.Optional(Type.String()),
  service: Type.Optional(ServiceSchema),
  uid: Type.Integer({ description: 'the unprivileged user its QEMU runs as, the same on every host' }),
})
export type VmSpec = Type.Static<typeof VmSpecSchema>

export const PlacementSchema = Type.Object({ host: IdSchema, epoch: Type.Integer({ minimum: 1 }) })
export type Placement = Type.Static<typeof PlacementSchema> & {
  handover?: { to: string; epoch: number; job: string; sealed: boolean }
}

export const VmStatusSchema = Type.Object({
  state: Type.Enum(VM_STATES),
  paused_by: Type.Optional(Type.Enum(PAUSED_BY)),
  /** Why it is in this state, when that is not obvious. */
  reason: Type.Optional(Type.String()),
  since: Type.String(),
  started_at: Type.Optional(Type.String()),
  pid: Type.Optional(Type.Integer()),
  accelerator: Type.Optional(Type.Union([Type.Literal('kvm'), Type.Literal('tcg')])),
  qemu_version: Type.Optional(Type.String()),
  /** ms from the start's request until the health check passed; only for VMs of a recipe, when it was waited for. */
  ready_ms: Type.Optional(Type.Integer()),
  agent: Type.Optional(Type.Union([Type.Literal('unknown'), Type.Literal('connected'), Type.Literal('absent')])),
  /** It ended though nobody asked for it: when it is started again, and which try in a row that is. */
  restart_at: Type.Optional(Type.String()),
  restart_try: Type.Optional(Type.Integer()),
  /** Fields whose change takes hold at the next start. */
  pending_restart: Type.Array(Type.String()),
})
export type VmStatus = Type.Static<typeof VmStatusSchema>

export const VM_ACTIONS = [
  'start',
  'shutdown',
  'stop',
  'reset',
  'pause',
  'resume',
  'delete',
  'edit',
  'clone',
  'migrate',
  'snapshot',
  'revert',
  'exec',
  'console',
] as const
export type VmAction = (typeof VM_ACTIONS)[number]

export const AllowedSchema = Type.Object({ ok: Type.Boolean(), why: Type.Optional(FaultSchema) })

export const AddressSchema = Type.Object({
  nic: NameSchema,
  address: Type.String(),
  source: Type.Union([Type.Literal('reserved'), Type.Literal('lease'), Type.Literal('agent')]),
})

export const VmSchema = Type.Object(
  {
    ...metaFields,
    description: Type.String(),
    labels: LabelsSchema,
    protected: Type.Boolean(),
    autostart: AutostartSchema,
    restart: Type.Enum(RESTARTS),
    snapshot_schedule: Type.Optional(SnapshotScheduleSchema),
    wanted: Type.Enum(WANTED),
    spec: VmSpecSchema,
    placement: PlacementSchema,
    status: VmStatusSchema,
    addresses: Type.Array(AddressSchema),
    /** Present on a single VM, absent in lists. */
    actions: Type.Optional(Type.Record(Type.String(), AllowedSchema)),
  },
  { title: 'Vm' },
)
export type Vm = Type.Static<typeof VmSchema>
