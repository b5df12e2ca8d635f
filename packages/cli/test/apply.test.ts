/** Declared servers: files are read with their lines, plans are pure, and a second run has nothing to do. */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Vm, VmCreate, VmEdit } from '@wadah/api/schema/vm'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { type Doc, readDocuments } from '../src/apply/documents.ts'
import { documentOf, exportText, sizeText } from '../src/apply/export.ts'
import { type Action, type Current, makePlan, type PlanOptions, same } from '../src/apply/plan.ts'
import { vm } from './support/samples.ts'

const read = (text: string): Doc[] => {
  const { docs, problems } = readDocuments(text, 'f.yaml')
  expect(problems).toEqual([])
  return docs
}
const wrong = (text: string) =>
  readDocuments(text, 'f.yaml').problems.map((p) => `${p.place.line}:${p.place.column} ${p.field} ${p.text}`)

const network = (name: string, id: string) => ({
  id,
  name,
  kind: 'nat',
  subnet: '10.1.0.0/24',
  state: 'up',
  reservations: [],
})
const ground = (): Current =>
  ({
    vms: [],
    networks: [network('default', 'net-aaaaaaaaaa'), network('office', 'net-bbbbbbbbbb')],
    pools: [{ id: 'pool-aaaaaaaaaa', name: 'default', path: '/p', overcommit: 2, generation: 1 }],
    images: [{ id: 'img-aaaaaaaaaa', name: 'web-server', recipe: 'web-server', ready: true }],
    volumes: [],
    groups: [{ id: 'grp-aaaaaaaaaa', name: 'web', description: '', rules: [], generation: 1, vms: [] }],
  }) as unknown as Current

const PLAIN: PlanOptions = { set: 'f', prune: false, restart: false }
const plan = (text: string, current: Current, o: Partial<PlanOptions> = {}) =>
  makePlan(read(text), current, { ...PLAIN, ...o })
const brief = (actions: readonly Action[]) => actions.map((a) => `${a.do} ${a.kind} ${a.name}`)

/** What the daemon would make of it: enough of it to see that a second plan is empty. */
function perform(current: Current, actions: readonly Action[]): Current {
  const next = structuredClone(current)
  let n = 0
  const volume = (size_mib: number) => {
    const id = `vol-${next.volumes.length}-${n++}`
    next.volumes.push({
      id,
      name: id,
      size_bytes: size_mib * 2 ** 20,
      format: 'qcow2',
      pool: 'pool-aaaaaaaaaa',
    } as never)
    return id
  }
  const nic = (input: NonNullable<VmCreate['nics']>[number], there: readonly { name: string }[]) => ({
    name: input.name ?? free('net', there),
    network: next.networks.find((x) => x.name === (input.network ?? 'default') || x.id === input.network)!.id,
    mac: input.mac ?? `52:54:00:00:00:${String(n++).padStart(2, '0')}`,
    address: input.address ?? `10.1.0.${n++}`,
    publish: (input.publish ?? []).map((p) => ({ protocol: 'tcp' as const, address: '127.0.0.1', ...p })),
    limits: { ...input.limits },
  })
  const disk = (input: { name?: string; size_mib?: number; limits?: object }, there: readonly { name: string }[]) => ({
    name: input.name ?? free('disk', there),
    volume: volume(input.size_mib ?? 1),
    limits: { ...input.limits },
  })
  for (const a of actions) {
    const there = next.vms.find((v) => v.name === a.name)
    if (a.do === 'create' && a.kind === 'vm') {
      const b = a.body as unknown as VmCreate
      const made = vm({
        id: `vm-${n++}`,
        name: b.name,
        description: b.description ?? '',
        labels: b.labels ?? {},
        protected: b.protected ?? false,
        autostart: { enabled: false, order: 100, delay_s: 0, ...b.autostart },
        restart: b.restart ?? 'on_failure',
      })
      const root = b.image === undefined ? [] : [{ name: 'root', volume: volume(b.disk_mib ?? 2048), limits: {} }]
      made.spec = {
        ...made.spec,
        cpus: b.cpus ?? 1,
        memory_mib: b.memory_mib ?? 512,
        limits: b.limits ?? {},
        balloon_mib: b.balloon_mib ?? null,
        disks: root,
        nics: [],
      }
      if (b.image === undefined) delete made.spec.image
      if (b.firewall) made.spec.firewall = kept(b.firewall)
      for (const d of b.disks ?? []) made.spec.disks.push(disk(d, made.spec.disks))
      for (const x of b.nics ?? [{}]) made.spec.nics.push(nic(x, made.spec.nics))
      made.status = { ...made.status, state: a.start ? 'running' : 'stopped', pending_restart: [] }
      next.vms.push(made)
    } else if (a.do === 'create' && a.kind === 'network') {
      next.networks.push({ ...network(a.name, `net-${n++}`), ...a.body } as never)
    } else if (a.do === 'create' && a.kind === 'image') {
      next.images.push({ id: `img-${n++}`, ready: true, ...a.body } as never)
    } else if (a.do === 'create' && a.kind === 'firewall-group') {
      next.groups.push({ id: `grp-${n++}`, rules: [], ...a.body } as never)
    } else if (a.do === 'create') next.pools.push({ id: `pool-${n++}`, overcommit: 2, ...a.body } as never)
    else if (a.do === 'edit' && there) {
      for (const g of a.grow) next.volumes.find((v) => v.id === g.volume)!.size_bytes = g.size_mib * 2 ** 20
      edit(there, a.body as VmEdit, nic, disk)
    } else if (a.do === 'edit') Object.assign(next.pools.find((p) => p.name === a.name)!, a.body)
    else if (a.do === 'delete') next.vms = next.vms.filter((v) => v !== there)
    else there!.status.state = a.do === 'shutdown' ? 'stopped' : 'running'
    if (a.do === 'edit' && there && a.stop && !a.start) there.status.state = 'stopped'
  }
  return next
}
function edit(v: Vm, b: VmEdit, nic: (i: never, t: never) => unknown, disk: (i: never, t: never) => unknown): void {
  const merge = (now: object, change: object | undefined) =>
    Object.fromEntries(Object.entries({ ...now, ...change }).filter(([, x]) => x !== null))
  Object.assign(v, {
    description: b.description ?? v.description,
    labels: b.labels ?? v.labels,
    protected: b.protected ?? v.protected,
    autostart: { ...v.autostart, ...b.autostart },
    restart: b.restart ?? v.restart,
  })
  const { spec } = v
  spec.cpus = b.cpus ?? spec.cpus
  spec.memory_mib = b.memory_mib ?? spec.memory_mib
  spec.balloon_mib = b.balloon_mib === undefined ? spec.balloon_mib : b.balloon_mib
  spec.limits = merge(spec.limits, b.limits)
  if (b.firewall) spec.firewall = kept({ ...spec.firewall, ...b.firewall })
  spec.disks = spec.disks.filter((d) => !b.remove_disks?.includes(d.name))
  for (const d of b.disks ?? []) {
    const found = spec.disks.find((x) => x.name === d.name)!
    found.limits = merge(found.limits, d.limits)
  }
  for (const d of b.add_disks ?? []) spec.disks.push(disk(d as never, spec.disks as never) as never)
  spec.nics = spec.nics.filter((x) => !b.remove_nics?.includes(x.name))
  for (const c of b.nics ?? []) {
    const found = spec.nics.find((x) => x.name === c.name)!
    if (c.address !== undefined) found.address = c.address
    if (c.publish) found.publish = c.publish.map((p) => ({ protocol: 'tcp', address: '127.0.0.1', ...p }))
    found.limits = merge(found.limits, c.limits)
  }
  for (const x of b.add_nics ?? []) spec.nics.push(nic(x as never, spec.nics as never) as never)
}
/** Names stand for themselves here: an id that nobody knows is shown as it is. */
const kept = (f: NonNullable<VmCreate['firewall']>) => ({
  in: f.in ?? ('drop' as const),
  out: f.out ?? ('accept' as const),
  groups: f.groups ?? [],
  rules: f.rules ?? [],
})
function free(stem: string, there: readonly { name: string }[]): string {
  for (let i = 1; ; i++) if (!there.some((t) => t.name === `${stem}${i}`)) return `${stem}${i}`
}

describe('a file', () => {
  it('is documents, or a list, or both', () => {
    const docs = read(
      'kind: vm\nname: a\n---\n- kind: vm\n  name: b\n- {kind: image, name: i, recipe: web-server}\n---\n# nothing\n',
    )
    expect(docs.map((d) => `${d.kind} ${d.name} ${d.at().line}`)).toEqual(['vm a 1', 'vm b 4', 'image i 6'])
  })
  it('has sizes with units, and the network says its type', () => {
    const [a, b] = read(
      'kind: vm\nname: a\nmemory: 1.5G\ndisk: 10G\nballoon: 256M\ndisks: [{name: d, size: 1T}]\n---\n{kind: network, name: n, type: nat}',
    )
    expect(a?.body).toEqual({
      name: 'a',
      memory_mib: 1536,
      disk_mib: 10_240,
      balloon_mib: 256,
      disks: [{ name: 'd', size_mib: 1024 * 1024 }],
    })
    expect(b?.body).toEqual({ name: 'n', kind: 'nat' })
  })
  it.each([
    ['kind: vm\nname: a\nmemroy: 1G', ['3:1 /memroy there is no field "memroy"; did you mean "memory"?']],
    [
      'kind: vm\nname: a\nmemory: 512',
      ['3:1 /memory 512 is a number; text is needed (a size with its unit, as 512M or 10G)'],
    ],
    [
      'kind: vm\nname: a\nmemory: 1.3K',
      ['3:1 /memory /memory: "1.3K" is not a whole number of bytes, or too large to be one'],
    ],
    [
      'kind: vn\nname: a',
      ['1:1 /kind "vn" is not one of pool, network, firewall-group, image, vm (did you mean "vm"?)'],
    ],
    ['name: a', ['1:1  "kind" is missing: pool, network, firewall-group, image, vm']],
    ['kind: vm', ['1:1  "name" is missing (RFC 1123 label: small letters, digits, hyphens)']],
    ['kind: image\nname: i', ['1:1  "recipe" is missing (RFC 1123 label: small letters, digits, hyphens)']],
    ['just text', ['1:1  a mapping is needed, with "kind: pool|network|firewall-group|image|vm" and "name"']],
    [
      'kind: vm\nname: a\nstate: runing',
      ['3:1 /state "runing" is not one of running, stopped (did you mean "running"?) (left out: as it is)'],
    ],
    [
      'kind: vm\nname: a\nnics:\n  - publish:\n      - {port: 80, too: 80}',
      [
        '5:20 /nics/0/publish/0/too there is no field "too"; did you mean "to"?',
        '5:9 /nics/0/publish/0 "to" is missing (port in the guest)',
      ],
    ],
    [
      'kind: vm\nname: a\nseed: {password: short}',
      ['3:8 /seed/password it is too short; 8 characters are the least (printable ASCII without spaces)'],
    ],
    ['kind: vm\nname: a\nname: b', ['3:1  Map keys must be unique']],
    ['kind: vm\nname: a\n---\nkind: vm\nname: a', ['5:1 /name there is vm a in line 1 already']],
    ['kind: network\nname: n\ntype: nta', ['3:1 /type "nta" is not one of user, nat, bridge (did you mean "nat"?)']],
    [
      'kind: vm\nname: Web',
      [
        '2:1 /name "Web" is not a name: use 1 to 63 small letters, digits and hyphens, beginning with a letter and not ending with a hyphen',
      ],
    ],
  ])('%j is refused by line and field', (text, expected) => {
    expect(wrong(text)).toEqual(expected)
  })
  it('never shows a password', () => {
    expect(wrong('kind: vm\nname: a\nseed: {password: "geheim geheim"}').join()).not.toContain('geheim')
  })
  it('does not blow up by aliases', () => {
    const bomb = `kind: vm\nname: a\nlabels: &a {k: v}\nx: [&b [*a,*a,*a,*a,*a,*a,*a,*a,*a], &c [*b,*b,*b,*b,*b,*b,*b,*b,*b], &d [*c,*c,*c,*c,*c,*c,*c,*c], [*d,*d,*d,*d]]`
    expect(wrong(bomb)[0]).toMatch(/alias/i)
  })
  it('of any text is read without falling over', () => {
    fc.assert(
      fc.property(
        fc.string({ unit: fc.constantFrom(...'kind: vm\n-{}[]&*"\'#|>!?,a1'.split('')), maxLength: 60 }),
        (text) => void readDocuments(text, 'f'),
      ),
    )
  })
})

describe('a plan', () => {
  it('goes by what needs what: pools, networks, images, servers', () => {
    const text = `
- {kind: vm, name: a, image: new, nics: [{network: n}], pool: p, state: running}
- {kind: image, name: new, recipe: web-server}
- {kind: network, name: n, type: nat}
- {kind: pool, name: p, path: /srv/p}`
    expect(brief(plan(text, ground()).actions)).toEqual([
      'create pool p',
      'create network n',
      'create image new',
      'create vm a',
    ])
  })
  it.each([
    ['cpus: 4', { cpus: 4 }, ['cpus']],
    ['memory: 1G', { memory_mib: 1024 }, []],
    ['memory: 384M', { memory_mib: 384 }, ['memory_mib']],
    ['description: hello', { description: 'hello' }, []],
    ['labels: {a: b}', { labels: { team: 'a', a: 'b', 'wadah.apply': 'f' } }, []],
    ['labels: {team: null}', { labels: { 'wadah.apply': 'f' } }, []],
    ['limits: {cpu_cap_percent: 50}', { limits: { cpu_cap_percent: 50 } }, []],
    ['protected: true', { protected: true }, []],
    ['autostart: {enabled: true}', { autostart: { enabled: true } }, []],
    ['balloon: 256M', { balloon_mib: 256 }, []],
    ['disks: [{name: d, size: 1G}]', { add_disks: [{ name: 'd', size_mib: 1024 }] }, []],
    [
      'nics: [{name: nic0, publish: [{port: 8080, to: 81}]}]',
      { nics: [{ name: 'nic0', publish: [{ port: 8080, to: 81 }] }] },
      [],
    ],
    ['firmware: {kind: uefi, secure_boot: true}', { firmware: { kind: 'uefi', secure_boot: true } }, ['firmware']],
    ['tpm: true', { tpm: true }, ['tpm']],
    ['serial_ports: 2', { serial_ports: 2 }, ['serial_ports']],
    ['boot_order: [root]', { boot_order: ['root'] }, ['boot_order']],
    ['firewall: {}', { firewall: {} }, []],
    ['firewall: {in: drop, groups: [web]}', { firewall: { in: 'drop', groups: ['web'] } }, []],
    ['cdroms: [{}]', { add_cdroms: [{ name: 'cd0' }] }, ['cdroms']],
    ['nics: [{name: nic0}, {network: office}]', { add_nics: [{ network: 'office', name: 'net1' }] }, []],
    ['nics: []', { remove_nics: ['nic0'] }, []],
  ])('%s is one edit', (field, body, later) => {
    const current = { ...ground(), vms: [vm({ labels: { team: 'a', 'wadah.apply': 'f' } })] }
    const { actions, obstacles } = plan(`kind: vm\nname: web\n${field}`, current)
    expect(obstacles).toEqual([])
    expect(actions).toMatchObject([{ do: 'edit', body, later, stop: false, generation: 3 }])
    expect(Object.keys((actions[0] as { body: object }).body)).toEqual(Object.keys(body))
  })
  it.each([
    '',
    'cpus: 2',
    'memory: 512M',
    'image: web-server',
    'labels: {team: a}',
    'limits: {cpu_cap_percent: null}',
    'nics: [{name: nic0, network: default, publish: [{port: 8080, to: 80}]}]',
    'state: running',
    'protected: false',
    'firmware: {kind: bios}',
    'boot_order: []',
    'tpm: false',
    'serial_ports: 1',
    'cdroms: []',
    'seed: {hostname: web}',
  ])('of what is so already is empty: %s', (field) => {
    const current = { ...ground(), vms: [vm({ labels: { team: 'a', 'wadah.apply': 'f' } })] }
    expect(plan(`kind: vm\nname: web\n${field}`, current)).toEqual({ actions: [], obstacles: [], notes: [] })
  })
  it.each([
    [
      'image: other',
      {},
      [
        'there is no image "other", and none in the file',
        'it was made from web-server, which cannot be changed afterwards',
      ],
    ],
    ['nics: [{network: nowhere}]', {}, ['there is no network "nowhere", and none in the file']],
    [
      'cdroms: []',
      { spec: { ...vm().spec, cdroms: [{ name: 'cd0' }] } },
      ['cdroms/cd0: this can be done to a stopped VM only'],
    ],
    ['cpus: 3', { labels: { 'wadah.apply': 'other' } }, ['it belongs to the set "other" of another file']],
  ])('%s cannot be done, and that is said before anything is', (field, over, texts) => {
    const current = { ...ground(), vms: [vm({ labels: { 'wadah.apply': 'f' }, ...over })] }
    expect(plan(`kind: vm\nname: web\n${field}`, current).obstacles.map((o) => o.text)).toEqual(texts)
  })
  it('makes disks larger, never smaller', () => {
    const first = perform(
      ground(),
      plan('{kind: vm, name: a, image: web-server, disk: 4G, disks: [{name: d, size: 1G}]}', ground()).actions,
    )
    const larger = plan('{kind: vm, name: a, disk: 5G, disks: [{name: d, size: 2G}]}', first)
    expect(larger).toMatchObject({
      obstacles: [],
      actions: [{ do: 'edit', body: {}, grow: [{ size_mib: 5120 }, { size_mib: 2048 }], stop: false }],
    })
    expect(
      plan('{kind: vm, name: a, disk: 3G, disks: [{name: d, size: 512M}]}', first).obstacles.map((o) => o.text),
    ).toEqual([
      'the disk "root" has 4096 MiB, and no disk becomes smaller',
      'the disk "d" has 1024 MiB, and no disk becomes smaller',
    ])
  })
  it('with --restart stops what has to be stopped, and starts it again', () => {
    const spec = { ...vm().spec, cdroms: [{ name: 'cd0' }] }
    const current = { ...ground(), vms: [vm({ labels: { 'wadah.apply': 'f' }, spec })] }
    expect(plan('kind: vm\nname: web\ncdroms: []', current, { restart: true })).toMatchObject({
      obstacles: [],
      actions: [{ do: 'edit', stop: true, start: true, body: { remove_cdroms: ['cd0'] } }],
    })
    current.vms[0]!.status.pending_restart = ['cpus']
    expect(brief(plan('kind: vm\nname: web', current, { restart: true }).actions)).toEqual(['restart vm web'])
    expect(plan('kind: vm\nname: web', current)).toMatchObject({
      actions: [],
      notes: [expect.stringContaining('cpus')],
    })
  })
  it('deletes what is no more in the file only when asked, of its own set, and not what is protected', () => {
    const of = (name: string, set: string, more = {}) =>
      vm({ id: `vm-${name}`, name, labels: { 'wadah.apply': set }, ...more })
    const current = { ...ground(), vms: [of('a', 'f'), of('b', 'f'), of('c', 'other')] }
    expect(plan('kind: vm\nname: a', current).actions).toEqual([])
    expect(brief(plan('kind: vm\nname: a', current, { prune: true }).actions)).toEqual(['delete vm b'])
    current.vms[1]!.protected = true
    expect(plan('kind: vm\nname: a', current, { prune: true })).toMatchObject({
      actions: [],
      obstacles: [{ name: 'b', remedy: 'wadah vm edit b --unprotect' }],
    })
  })
  it('changes security groups, and wants those that are named to be there', () => {
    const group = '{kind: firewall-group, name: web, rules: [{name: s, direction: in, action: drop, from: [lan]}]}'
    expect(plan(`- ${group}`, ground()).obstacles.map((o) => o.path.join('/'))).toEqual(['rules/0/from/0'])
    const text = `- ${group}\n- {kind: firewall-group, name: lan}\n- {kind: vm, name: a, firewall: {groups: [lan, nowhere]}}`
    const { actions, obstacles } = plan(text, ground())
    expect(obstacles.map((o) => o.path.join('/'))).toEqual(['firewall/groups/1'])
    expect(brief(actions)).toEqual(['create firewall-group lan', 'edit firewall-group web', 'create vm a'])
    const circle = (a: string, b: string) =>
      `{kind: firewall-group, name: ${a}, rules: [{name: r, direction: in, action: accept, from: [${b}]}]}`
    expect(brief(plan(`- ${circle('x', 'y')}\n- ${circle('y', 'y')}`, ground()).actions)).toEqual([
      'create firewall-group y',
      'create firewall-group x',
    ])
    expect(plan(`- ${circle('x', 'y')}\n- ${circle('y', 'x')}`, ground()).obstacles).toHaveLength(2)
    const there = ground()
    there.groups[0]!.rules = [{ name: 's', direction: 'in', action: 'drop', protocol: 'any' }]
    expect(
      plan('{kind: firewall-group, name: web, rules: [{name: s, direction: in, action: drop}]}', there).actions,
    ).toEqual([])
  })
  it('of networks, pools and images that differ says why not', () => {
    const text = `
- {kind: network, name: office, type: user}
- {kind: pool, name: default, path: /elsewhere, overcommit: 3}
- {kind: image, name: web-server, recipe: other}`
    const { obstacles, actions } = plan(text, ground())
    expect(obstacles.map((o) => `${o.kind} ${o.path.join('/')}`)).toEqual(['pool path', 'network type', 'image recipe'])
    expect(actions).toMatchObject([{ do: 'edit', kind: 'pool', body: { overcommit: 3 } }])
  })
})

describe('applied twice', () => {
  const name = fc.constantFrom('a', 'b', 'c')
  const maybe = <T>(arb: fc.Arbitrary<T>) => fc.option(arb, { nil: undefined })
  const nic = fc.record(
    {
      network: maybe(fc.constantFrom('default', 'office')),
      publish: maybe(
        fc.uniqueArray(fc.record({ port: fc.integer({ min: 1, max: 9 }), to: fc.integer({ min: 1, max: 3 }) }), {
          selector: (p) => p.port,
          maxLength: 3,
        }),
      ),
      limits: maybe(fc.record({ in_bytes_per_s: maybe(fc.constantFrom(null, 5000, 6000)) }, { requiredKeys: [] })),
    },
    { requiredKeys: [] },
  )
  const disk = fc.record({
    name: fc.constantFrom('x', 'y'),
    size: fc.constantFrom('1G'),
    limits: maybe(fc.record({ iops: fc.constantFrom(null, 5) })),
  })
  const server = fc.record(
    {
      kind: fc.constant('vm'),
      name,
      description: maybe(fc.constantFrom('', 'x')),
      labels: maybe(fc.dictionary(fc.constantFrom('k', 'l'), fc.constantFrom('1', '2', null))),
      cpus: maybe(fc.integer({ min: 1, max: 3 })),
      memory: maybe(fc.constantFrom('512M', '1G')),
      protected: maybe(fc.boolean()),
      autostart: maybe(
        fc.record({ enabled: maybe(fc.boolean()), order: maybe(fc.integer({ min: 1, max: 3 })) }, { requiredKeys: [] }),
      ),
      limits: maybe(fc.record({ cpu_cap_percent: fc.constantFrom(null, 50, 70) })),
      nics: maybe(fc.array(nic, { maxLength: 2 })),
      firewall: maybe(
        fc.record(
          {
            in: maybe(fc.constantFrom('accept', 'drop')),
            groups: maybe(fc.subarray(['web'])),
            rules: maybe(
              fc.subarray([
                {
                  name: 'ssh',
                  direction: 'in',
                  action: 'accept',
                  protocol: 'tcp',
                  ports: '22',
                  from: ['web', '10.0.0.0/8'],
                },
                { name: 'rest', direction: 'out', action: 'drop' },
              ]),
            ),
          },
          { requiredKeys: [] },
        ),
      ),
      disks: maybe(fc.uniqueArray(disk, { selector: (d) => d.name, maxLength: 2 })),
      state: maybe(fc.constantFrom('running', 'stopped')),
    },
    { requiredKeys: ['kind', 'name'] },
  )
  const file = fc.uniqueArray(server, { selector: (s) => s.name, maxLength: 3 }).map((all) => JSON.stringify(all))
  it('there is nothing more to do, whatever was there before', () => {
    const o = { ...PLAIN, restart: true, prune: true }
    fc.assert(
      fc.property(file, file, (first, second) => {
        const before = perform(ground(), makePlan(read(first), ground(), o).actions)
        for (const v of before.vms) v.protected = false
        const next = makePlan(read(second), before, o)
        expect(next.obstacles).toEqual([])
        const after = perform(before, next.actions)
        const again = makePlan(read(second), after, o)
        expect(again.actions).toEqual([])
        // What was exported says the same as what is there.
        const exported = exportText(after.vms.map((v) => documentOf(v, after)))
        expect(makePlan(read(exported), after, o).actions).toEqual([])
      }),
      { numRuns: 300 },
    )
  }, 60_000)
})

describe('the examples', () => {
  const folder = join(import.meta.dirname, '../../../examples')
  it.each(readdirSync(folder).filter((f) => f.endsWith('.yaml')))(
    '%s can be planned on a new host, and then needs nothing',
    (file) => {
      const docs = read(readFileSync(join(folder, file), 'utf8'))
      const bare = { ...ground(), networks: [], images: [] }
      const { actions, obstacles } = makePlan(docs, bare, PLAIN)
      expect(obstacles).toEqual([])
      expect(actions.length).toBeGreaterThan(1)
      expect(makePlan(docs, perform(bare, actions), PLAIN).actions).toEqual([])
    },
  )
})

it('sizes are as short as they can be', () => {
  expect([512, 1024, 1536, 1024 * 1024, 3 * 1024].map(sizeText)).toEqual(['512M', '1G', '1536M', '1T', '3G'])
  expect(same({ a: [1, { b: null }] }, { a: [1, { b: null }] })).toBe(true)
  expect(same({ a: 1 }, { a: 1, b: 2 })).toBe(false)
})
