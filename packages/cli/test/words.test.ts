import { readFileSync } from 'node:fs'
import { FAULTS, type FaultCode } from '@wadah/api/fault'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { EXIT, exitCode } from '../src/exit.ts'
import { chooseLanguage, translator } from '../src/messages/catalogue.ts'
import { en } from '../src/messages/en.ts'
import { id } from '../src/messages/id.ts'
import { faultLines } from '../src/out/fault.ts'
import { progressLine } from '../src/out/progress.ts'
import { clean, cleanText, safeJson } from '../src/text/clean.ts'
import { formatAge, formatBytes, formatTook } from '../src/text/format.ts'
import { job } from './support/samples.ts'

const parameters = (text: string) => [...text.matchAll(/\{(\w+)\}/g)].map((m) => m[1]).sort()

describe('messages', () => {
  it('have the same keys and parameters in both languages, and none is empty', () => {
    expect(Object.keys(id).sort()).toEqual(Object.keys(en).sort())
    for (const key of Object.keys(en) as (keyof typeof en)[]) {
      expect([key, parameters(id[key])]).toEqual([key, parameters(en[key])])
      expect(en[key].length * id[key].length, key).toBeGreaterThan(0)
    }
  })
  it('have words for every fault and every exit code', () => {
    for (const code of Object.keys(FAULTS)) expect(Object.keys(en)).toContain(`fault.${code}`)
    for (const name of Object.keys(EXIT)) expect(Object.keys(en)).toContain(`exit.${name}`)
  })
  it('clean what is filled in', () => {
    expect(translator('en')('vm.started', { name: 'a\x1b[2Jb' })).toBe('a\\x1b[2Jb runs')
    expect(translator('id')('vm.started', { name: 'web' })).toBe('web berjalan')
  })
  it('choose a language', () => {
    expect(chooseLanguage('id', { LANG: 'en_US.UTF-8' })).toBe('id')
    expect(chooseLanguage(undefined, { WADAH_LANG: 'id', LANG: 'en' })).toBe('id')
    expect(chooseLanguage(undefined, { LANG: 'id_ID.UTF-8' })).toBe('id')
    expect(chooseLanguage(undefined, { LANG: 'de_DE', LC_ALL: '' })).toBe('en')
    expect(chooseLanguage(undefined, {})).toBe('en')
  })
})

describe('exit codes', () => {
  it('are told apart by class', () => {
    const of = (code: FaultCode) => exitCode(code)
    expect([
      of('not_found'),
      of('in_use'),
      of('forbidden'),
      of('unreachable'),
      of('timeout'),
      of('no_room'),
      of('invalid'),
      of('internal'),
    ]).toEqual([3, 4, 5, 6, 7, 8, 2, 1])
    expect(exitCode('of_a_newer_daemon')).toBe(1)
  })
  it('are all in docs/cli.md', () => {
    const page = readFileSync(`${import.meta.dirname}/../../../docs/cli.md`, 'utf8')
    for (const code of Object.values(EXIT)) expect(page).toMatch(new RegExp(`^\\| ${code} *\\|`, 'm'))
  })
})

describe('what is printed', () => {
  it('cannot drive a terminal', () => {
    expect(clean('a\x1b[31m\r\n\x9b2J\u202eb')).toBe('a\\x1b[31m\\x0d\\x0a\\x9b2J\\u202eb')
    expect(cleanText('a\tb\r\nc\x07')).toBe('a\tb\nc\\x07')
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), (text) => {
        // oxlint-disable-next-line no-control-regex -- control characters are the point
        expect(clean(text)).not.toMatch(/[\u0000-\u001f\u007f-\u009f\u202a-\u202e]/)
        expect(JSON.parse(safeJson({ text }))).toEqual({ text })
        // oxlint-disable-next-line no-control-regex -- control characters are the point
        expect(safeJson({ text })).not.toMatch(/[\u0000-\u001f\u007f-\u009f\u202a-\u202e]/)
      }),
    )
  })
  it('reads well', () => {
    expect([0, 1023, 1024, 1536 * 2 ** 20, 130 * 2 ** 20, 4 * 2 ** 40].map(formatBytes)).toEqual([
      '0 B',
      '1023 B',
      '1 KiB',
      '1.5 GiB',
      '130 MiB',
      '4 TiB',
    ])
    expect([5, 999, 12_340, 250_000].map(formatTook)).toEqual(['5 ms', '999 ms', '12.3 s', '4 min 10 s'])
    expect([0, 59_000, 60_000, 7_500_000, 200_000_000].map(formatAge)).toEqual(['0s', '59s', '1m', '2h 5m', '2d 7h'])
  })
  it('says all of a fault', () => {
    const lines = faultLines(
      {
        code: 'no_room',
        status: 507,
        title: 't',
        detail: 'disk\x1bfull',
        field: '/disk_mib',
        remedy: 'wadah pool list',
        effect: 'partial',
        retryable: false,
      },
      translator('en'),
    )
    expect(lines).toEqual([
      'Error: not enough room',
      '  disk\\x1bfull',
      '  field: /disk_mib',
      '  It was half done; it is undone or finished by itself later.',
      '  next: wadah pool list',
    ])
  })
  it('draws progress within the width', () => {
    expect(progressLine(job({ percent: 40 }), 12_300, 80)).toBe('[########------------]  40%  reserve  12.3 s')
    expect(progressLine(job({ percent: 400 }), 0, 20)).toHaveLength(19)
    expect(
      progressLine(job({ state: 'undoing', steps: [{ name: 'volumes\x1b', state: 'undoing' }] }), 0, 80),
    ).toContain('undoing: volumes\\x1b')
  })
})

it('a detail of several lines is shown as such, and none of them passes for a line of ours', () => {
  const fault = {
    code: 'tool_failed',
    status: 500,
    title: 'x',
    detail: 'ip: no\nnext: rm -r /\n',
    effect: 'none',
    retryable: false,
  }
  const lines = faultLines(fault as never, ((key: string) => key) as never)
  expect(lines.join('\n')).toContain('  ip: no\n    next: rm -r /')
  expect(lines.join('\n')).not.toContain('\\x0a')
})
