/**
 * The seed of cloud-init's NoCloud source: a small disk with the label `cidata` and three files. JSON is YAML, so no value can break
 * out of its place. What Wadah says (user, keys, name) and the user's own user-data are handed over as parts of one MIME message;
 * lists are joined, and where both set the same value Wadah's stands.
 * https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html
 */
import type { CloudSeed } from '@wadah/ports/machine'
import { isoImage } from './iso9660.ts'
import { sha512Crypt } from './sha512-crypt.ts'

const MERGE = 'list(append)+dict(no_replace,recurse_list)+str()'

export function cloudSeedImage(seed: CloudSeed, salt: string): Buffer {
  const text = (value: string): Uint8Array => Buffer.from(value)
  return isoImage('cidata', [
    {
      name: 'meta-data',
      data: text(`${JSON.stringify({ 'instance-id': seed.instance_id, 'local-hostname': seed.hostname })}\n`),
    },
    { name: 'network-config', data: text(`${JSON.stringify(networkConfig(seed))}\n`) },
    { name: 'user-data', data: text(userData(seed, salt)) },
  ])
}

/** Version 2; each NIC is found by its MAC, whatever the guest calls it, and asks by DHCP. Pure. */
export function networkConfig(seed: Pick<CloudSeed, 'nics'>): unknown {
  return {
    version: 2,
    ethernets: Object.fromEntries(
      seed.nics.map(({ name, mac }) => [name, { match: { macaddress: mac }, dhcp4: true, optional: true }]),
    ),
  }
}

/** Pure. The password leaves only as its hash. */
export function cloudConfig(seed: CloudSeed, salt: string): { [key: string]: unknown } {
  const { user, password, ssh_keys } = seed
  const hash = password === undefined ? undefined : sha512Crypt(password, salt)
  return {
    hostname: seed.hostname,
    manage_etc_hosts: true,
    ...(hash === undefined ? {} : { ssh_pwauth: true, chpasswd: { expire: false } }),
    ...(user === undefined
      ? {
          // The image's own user.
          ...(ssh_keys.length > 0 ? { ssh_authorized_keys: ssh_keys } : {}),
          ...(hash === undefined ? {} : { password: hash }),
        }
      : {
          users: [
            {
              name: user,
              shell: '/bin/bash',
              sudo: 'ALL=(ALL) NOPASSWD:ALL',
              lock_passwd: hash === undefined,
              ...(hash === undefined ? {} : { passwd: hash }),
              ...(ssh_keys.length > 0 ? { ssh_authorized_keys: ssh_keys } : {}),
            },
          ],
        }),
  }
}

/** Types of user-data by their first line (cloud-init, "User data formats"). */
const TYPES: readonly [RegExp, string][] = [
  [/^#cloud-config\b/, 'text/cloud-config'],
  [/^#!/, 'text/x-shellscript'],
  [/^#include-once\b/, 'text/x-include-once-url'],
  [/^#include\b/, 'text/x-include-url'],
  [/^#cloud-boothook\b/, 'text/cloud-boothook'],
  [/^## template: jinja/, 'text/jinja2'],
]

/** The type of a user's user-data, or undefined when cloud-init would not know what to do with it. Pure. */
export function userDataType(text: string): string | undefined {
  return TYPES.find(([begin]) => begin.test(text))?.[1]
}

function userData(seed: CloudSeed, salt: string): string {
  const own = `#cloud-config\n${JSON.stringify(cloudConfig(seed, salt), undefined, 1)}\n`
  if (seed.user_data === undefined) return own
  const type = userDataType(seed.user_data) ?? 'text/cloud-config'
  // Base 64, so that nothing in it can look like the end of its part.
  const part = (kind: string, body: string): string =>
    [
      `Content-Type: ${kind}; charset="utf-8"`,
      'MIME-Version: 1.0',
      'Content-Transfer-Encoding: base64',
      ...(kind === 'text/cloud-config' ? [`Merge-Type: ${MERGE}`] : []),
      '',
      ...(Buffer.from(body)
        .toString('base64')
        .match(/.{1,76}/g) ?? []),
      '',
    ].join('\n')
  const boundary = '===============wadah=='
  return [
    `Content-Type: multipart/mixed; boundary="${boundary}"`,
    'MIME-Version: 1.0',
    '',
    `--${boundary}`,
    part('text/cloud-config', own),
    `--${boundary}`,
    part(type, seed.user_data),
    `--${boundary}--`,
    '',
  ].join('\n')
}
