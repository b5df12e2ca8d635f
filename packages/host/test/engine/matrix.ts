/** Launch requests of all sorts: for golden command lines, and for a real QEMU to accept. */
import type { VmSpec } from '@wadah/api/schema/vm'
import type { BootDevice, LaunchRequest } from '@wadah/ports/machine'

export const POOL = { id: 'pool-aaaaaaaaaa', path: '/pool', direct_io: true }
export const volume = (id: string, format: 'qcow2' | 'raw' = 'qcow2') => ({
  id,
  pool: POOL.id,
  format,
  size_bytes: 2 ** 30,
})

export function request(over: Partial<VmSpec> = {}, more: Partial<LaunchRequest> = {}): LaunchRequest {
  const spec: VmSpec = {
    cpus: 2,
    memory_mib: 512,
    machine: 'q35',
    boot: { kind: 'disk' },
    disks: [],
    nics: [],
    limits: {},
    balloon_mib: null,
    seed: { hostname: 'web', has_password: false, ssh_keys: [] },
    uid: 5000,
    ...over,
  }
  return {
    vm: 'vm-aaaaaaaaaa',
    name: 'web',
    epoch: 1,
    spec,
    disks: spec.disks.map((d) => ({ name: d.name, chain: [volume(d.volume)], pool: POOL })),
    nics: spec.nics.map((n) => ({
      name: n.name,
      network: n.address
        ? {
            id: n.network,
            name: 'n',
            kind: 'nat',
            subnet: '10.1.0.0/24',
            gateway: '10.1.0.1',
            bridge: 'b',
            domain: 'd',
          }
        : { id: n.network, name: 'u', kind: 'user' },
      attachment: {
        vm: 'vm-aaaaaaaaaa',
        vm_name: 'web',
        nic: n.name,
        network: n.network,
        uid: 5000,
        mac: n.mac,
        publish: n.publish,
        limits: {},
      },
    })),
    seed: {},
    ...more,
  }
}
export const disk = (i: number) => ({
  name: `disk${i}`,
  volume: `vol-${'abcdefghij'.slice(0, 9)}${'abcdefghijklmnop'[i]}`,
  limits: {},
})
export const nic = (i: number, over: object = {}) => ({
  name: `net${i}`,
  network: 'net-aaaaaaaaaa',
  mac: `52:54:00:00:00:0${i}`,
  publish: [],
  limits: {},
  ...over,
})
export const FACTS = { machine: 'pc-q35-7.2', accelerator: 'tcg' as const, cpu: { model: 'qemu64', flags: [] } }
export const LOCAL = {
  qemu: '/usr/bin/qemu-system-x86_64',
  directory: '/var/lib/wadah/vms/vm-aaaaaaaaaa/live',
  cgroup: 'wadah',
  diskPath: (pool: { path: string }, v: { id: string; format: string }) => `${pool.path}/${v.id}.${v.format}`,
  tapName: (_vm: string, n: string) => `tap-${n}`,
}

/** `came`: devices that came while it ran. */
export const MATRIX: Record<string, { request: LaunchRequest; facts?: object; local?: object; came?: BootDevice[] }> = {
  grown: {
    request: request({ memory_mib: 256, nics: [nic(1)], serial_ports: 4 }),
    came: [
      { kind: 'dimm', id: 'dimm0', slot: 0, mib: 128 },
      { kind: 'dimm', id: 'dimm1', slot: 1, mib: 512 },
    ],
  },
  'kernel-no-disk': {
    request: request(
      { cpus: 1, memory_mib: 96, boot: { kind: 'kernel', image: 'img-aaaaaaaaaa', cmdline: 'console=ttyS0' } },
      { kernel: { image: 'img-aaaaaaaaaa', cmdline: 'console=ttyS0 quiet', has_initrd: true } },
    ),
    local: { kernel: { kernel: '/images/kernel', initrd: '/images/initrd' } },
  },
  'linked-chain': {
    request: request(
      {
        disks: [disk(0), disk(1)],
        nics: [
          nic(1, { address: '10.1.0.11' }),
          nic(2, {
            publish: [
              { protocol: 'tcp', address: '127.0.0.1', port: 8080, to: 80 },
              { protocol: 'udp', address: '0.0.0.0', port: 53, to: 53 },
            ],
          }),
        ],
      },
      {
        disks: [
          { name: 'disk0', chain: [volume('vol-top'), volume('vol-middle'), volume('vol-base', 'raw')], pool: POOL },
          { name: 'disk1', chain: [volume('vol-raw', 'raw')], pool: { ...POOL, direct_io: false } },
        ],
      },
    ),
  },
  'many-disks': { request: request({ disks: Array.from({ length: 9 }, (_, i) => disk(i)) }) },
  kvm: {
    request: request({ disks: [disk(0)] }),
    facts: { accelerator: 'kvm', cpu: { model: 'qemu64', flags: ['+ssse3', '-svm'] } },
  },
  'uefi-cdroms': {
    request: request(
      {
        disks: [disk(0)],
        cdroms: [{ name: 'cd0', image: 'img-bbbbbbbbbb' }, { name: 'cd1' }],
        boot_order: ['cd0'],
        firmware: { kind: 'uefi' },
      },
      { cdroms: [{ name: 'cd0', image: 'img-bbbbbbbbbb' }, { name: 'cd1' }] },
    ),
    local: {
      cdroms: { cd0: '/images/iso' },
      firmware: { code: '/usr/share/OVMF/OVMF_CODE_4M.fd', vars: '/state/nvram.fd' },
    },
  },
  'longest-names': {
    request: request(
      { disks: [{ ...disk(0), name: 'a234567890123456' }], cdroms: [{ name: 'b234567890123456' }] },
      {
        disks: [
          {
            name: 'a234567890123456',
            chain: ['vol-top', 'vol-middle', 'vol-base'].map((id) => volume(id)),
            pool: POOL,
          },
        ],
        cdroms: [{ name: 'b234567890123456' }],
      },
    ),
  },
  'secure-boot': {
    request: request({ disks: [disk(0)], firmware: { kind: 'uefi', secure_boot: true }, tpm: true }),
    local: {
      tpm: { swtpm: '/usr/bin/swtpm', setup: '/usr/bin/swtpm_setup' },
      firmware: { code: '/usr/share/OVMF/OVMF_CODE_4M.secboot.fd', vars: '/state/nvram-secure.fd' },
    },
  },
  hostdevs: {
    request: request({
      disks: [disk(0)],
      nics: [nic(1)],
      hostdevs: [
        { name: 'gpu', kind: 'pci', address: '0000:03:00.0' },
        { name: 'stick', kind: 'usb', port: '1-2' },
        { name: 'sound', kind: 'pci', address: '0000:03:00.1' },
      ],
    }),
    local: {
      devices: {
        gpu: { kind: 'pci', address: '0000:03:00.0', node: '/dev/vfio/12' },
        sound: { kind: 'pci', address: '0000:03:00.1', node: '/dev/vfio/12' },
        stick: { kind: 'usb', node: '/dev/bus/usb/001/004' },
      },
    },
  },
  'cloud-seed': {
    request: request(
      { disks: [disk(0)] },
      { cloud_seed: { instance_id: 'vm-aaaaaaaaaa', hostname: 'web', ssh_keys: [], nics: [] } },
    ),
  },
  commas: {
    request: request({ disks: [disk(0)] }),
    local: { directory: '/odd,place/live', diskPath: () => '/a,b/c.qcow2' },
  },
}
