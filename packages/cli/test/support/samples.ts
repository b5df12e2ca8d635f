/** Records as the daemon answers them. */
import type { Job } from '@wadah/api/schema/job'
import type { Vm } from '@wadah/api/schema/vm'

export function vm(over: Partial<Vm> = {}): Vm {
  return {
    id: 'vm-aaaaaaaaaa',
    name: 'web',
    project: 'default',
    generation: 3,
    created_at: '2026-11-20T10:00:00Z',
    description: '',
    labels: { team: 'a' },
    protected: false,
    autostart: { enabled: false, order: 100, delay_s: 0 },
    restart: 'on_failure',
    wanted: 'running',
    spec: {
      cpus: 2,
      memory_mib: 512,
      machine: 'q35',
      boot: { kind: 'disk' },
      disks: [{ name: 'root', volume: 'vol-aaaaaaaaaa', limits: {} }],
      nics: [
        {
          name: 'nic0',
          network: 'net-aaaaaaaaaa',
          mac: '52:54:00:00:00:01',
          publish: [{ protocol: 'tcp', address: '127.0.0.1', port: 8080, to: 80 }],
          limits: {},
        },
      ],
      limits: {},
      balloon_mib: null,
      seed: { hostname: 'web', has_password: false, ssh_keys: [] },
      image: 'img-aaaaaaaaaa',
      uid: 100_001,
    },
    placement: { host: 'host-aaaaaaaaaa', epoch: 1 },
    status: {
      state: 'running',
      since: '2026-11-20T10:00:00Z',
      started_at: '2026-11-20T10:00:00Z',
      accelerator: 'tcg',
      pending_restart: [],
    },
    addresses: [{ nic: 'nic0', address: '10.0.2.15', source: 'lease' }],
    ...over,
  }
}

export function job(over: Partial<Job> = {}): Job {
  return {
    id: 'job-aaaaaaaaaa',
    kind: 'vm.create',
    project: 'default',
    subject: 'socket:root',
    state: 'running',
    target: { kind: 'vm', id: 'vm-aaaaaaaaaa', name: 'web' },
    percent: 0,
    steps: [{ name: 'reserve', state: 'running' }],
    created_at: '2026-11-20T10:00:00Z',
    ...over,
  }
}
