import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { cloudConfig, cloudSeedImage, networkConfig, userDataType } from '@wadah/host/engine/cloud-init'
import { cryptSalt, sha512Crypt } from '@wadah/host/engine/sha512-crypt'
import { isoImage } from '@wadah/host/engine/iso9660'
import type { CloudSeed } from '@wadah/ports/machine'

const seed: CloudSeed = {
  instance_id: 'vm-aaaaaaaaaa',
  hostname: 'web',
  user: 'admin',
  password: 'correct horse',
  ssh_keys: ['ssh-ed25519 AAAA me@here'],
  nics: [{ name: 'net1', mac: '52:54:00:00:00:01' }],
}

describe('sha512-crypt', () => {
  // From the specification (Drepper).
  test.each([
    [
      'Hello world!',
      'saltstringsaltst',
      10000,
      '$6$rounds=10000$saltstringsaltst$OW1/O6BYHV6BcXZu8QVeXbDWra3Oeqh0sbHbbMCVNSnCM/UrjmM0Dp8vOuZeHBy/YTBmSK6H9qs/y3RnOaw5v.',
    ],
  ])('%s, %s, %d rounds', (password, salt, rounds, wanted) => {
    expect(sha512Crypt(password, salt, rounds)).toBe(wanted)
  })
  test.each([0, 1, 15, 16, 17, 63, 64, 65, 128])('agrees with openssl for %d characters', (length) => {
    const password = 'x'.repeat(length)
    const theirs = execFileSync('openssl', ['passwd', '-6', '-salt', 'abcdefgh', '-stdin'], {
      input: `${password}\n`,
      encoding: 'utf8',
    })
    if (length > 0) expect(sha512Crypt(password, 'abcdefgh')).toBe(theirs.trim())
  })
  test('salts are of the alphabet', () => {
    expect(cryptSalt(Uint8Array.from({ length: 16 }, (_, i) => i * 16))).toMatch(/^[./0-9A-Za-z]{16}$/)
  })
})

describe('the seed disk', () => {
  const read = (image: Buffer, file: string): string => {
    const dir = mkdtempSync(join(tmpdir(), 'wadah-iso-'))
    try {
      writeFileSync(join(dir, 's.iso'), image)
      execFileSync(
        'xorriso',
        ['-osirrox', 'on', '-indev', join(dir, 's.iso'), '-extract', `/${file}`, join(dir, 'out')],
        { stdio: 'ignore' },
      )
      return readFileSync(join(dir, 'out'), 'utf8')
    } finally {
      rmSync(dir, { recursive: true, force: true })
    }
  }

  test('is an ISO 9660 that other programs read, with names as they are', () => {
    const image = cloudSeedImage(seed, 'abcdefgh')
    expect(image.toString('latin1', 32_769, 32_774)).toBe('CD001')
    expect(image.toString('latin1', 32_808, 32_814)).toBe('cidata')
    expect(JSON.parse(read(image, 'meta-data'))).toEqual({ 'instance-id': 'vm-aaaaaaaaaa', 'local-hostname': 'web' })
    expect(JSON.parse(read(image, 'network-config'))).toEqual(networkConfig(seed))
    const user = read(image, 'user-data')
    expect(user.startsWith('#cloud-config\n')).toBe(true)
    expect(JSON.parse(user.slice(14))).toEqual(cloudConfig(seed, 'abcdefgh'))
  })
  test('holds no password in clear', () => {
    const image = cloudSeedImage({ ...seed, user_data: '#cloud-config\nruncmd: [true]\n' }, 'abcdefgh')
    expect(image.includes('correct horse')).toBe(false)
    expect(image.includes(Buffer.from('correct horse').toString('base64').slice(0, 12))).toBe(false)
  })
  test('long files, and files that fill their sectors', () => {
    for (const length of [0, 1, 2047, 2048, 2049, 70_000]) {
      const data = Buffer.alloc(length, 'a')
      if (length > 0) expect(read(isoImage('x', [{ name: 'user-data', data }]), 'user-data')).toBe(data.toString())
    }
  })
  test("the user's own user-data is a part of its own", () => {
    const own = '#cloud-config\npackages: [nginx]\n'
    const text = read(cloudSeedImage({ ...seed, user_data: own }, 'abcdefgh'), 'user-data')
    expect(text).toMatch(/^Content-Type: multipart\/mixed/)
    expect(text).toContain(Buffer.from(own).toString('base64'))
    expect(text.match(/Merge-Type: /g)?.length).toBe(2)
  })
})

test('without a user the keys and the password are for the one of the image', () => {
  const { user: _, ...nobody } = seed
  const config = cloudConfig(nobody, 'abcdefgh')
  expect(config).toMatchObject({ ssh_authorized_keys: seed.ssh_keys, password: expect.stringMatching(/^\$6\$/) })
  expect(config['users']).toBeUndefined()
})

test.each([
  ['#cloud-config\na: 1', 'text/cloud-config'],
  ['#!/bin/sh\ntrue', 'text/x-shellscript'],
  ['#include\nhttp://x', 'text/x-include-url'],
  ['hello', undefined],
])('user-data that begins with %j', (text, type) => {
  expect(userDataType(text)).toBe(type)
})
