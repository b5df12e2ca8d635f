import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { afterEach, describe, expect, test } from 'vitest'
import { isKernel } from '../../src/images/images.ts'
import { parseRecipe } from '../../src/images/recipe.ts'
import { loadRecipes, recipeChain } from '../../src/images/recipes.ts'

const GOOD = `name = "wiki"
title = "Wiki"
title_id = "Wiki"
description = "d"
description_id = "d"
base = "debian-12"
packages = ["nginx-light"]
`
const OURS = resolve(import.meta.dirname, '../../../../recipes')
const dirs: string[] = []
afterEach(() => {
  for (const dir of dirs.splice(0)) rmSync(dir, { recursive: true, force: true })
})
function folder(toml: string): string {
  const dir = mkdtempSync(join(tmpdir(), 'wadah-recipes-'))
  dirs.push(dir)
  mkdirSync(join(dir, 'wiki', 'files', 'etc'), { recursive: true })
  writeFileSync(join(dir, 'wiki', 'recipe.toml'), toml)
  return dir
}

describe('a recipe', () => {
  test('is read', () => {
    expect(parseRecipe(GOOD, 'x')).toMatchObject({ name: 'wiki', base: 'debian-12', packages: ['nginx-light'] })
  })
  test.each([
    ['a typo in a key', `${GOOD}pakages = ["x"]\n`, /pakages.*packages/s],
    ['a package that can be none', GOOD.replace('nginx-light', 'nginx light; rm -rf /'), /nginx light/],
    ['a package that is an option', GOOD.replace('nginx-light', '--purge'), /--purge/],
    ['a unit that can be none', `${GOOD}[units]\nenable = ["../x"]\n`, /\.\.\/x/],
    ['a file above the root', `${GOOD}[[files]]\npath = "/etc/../../x"\ncontent = ""\n`, /\/etc\/\.\.\/\.\.\/x/],
    ['a file that is relative', `${GOOD}[[files]]\npath = "etc/x"\ncontent = ""\n`, /etc\/x/],
    ['no TOML', 'name = ', /x/],
    ['a number where a text belongs', GOOD.replace('"Wiki"', '3'), /title/],
  ])('%s is refused by name', (_what, text, says) => {
    expect(() => parseRecipe(text, 'x')).toThrow(
      expect.objectContaining({
        fault: expect.objectContaining({ code: 'invalid', detail: expect.stringMatching(says) }),
      }),
    )
  })
  test('with a mistake is listed with its problem; one that is there twice is the first', async () => {
    const found = await loadRecipes([OURS, folder(`${GOOD}pakages = []\n`)])
    expect(found.get('wiki')?.problem?.detail).toContain('pakages')
    for (const name of ['debian-12', 'file-server', 'print-server', 'web-server', 'tiny'])
      expect(found.get(name)?.problem).toBeUndefined()
    expect(() => recipeChain(found, 'wiki')).toThrow(/pakages/)
    expect(() => recipeChain(found, 'web-sever')).toThrow(/web-sever/)
  })
  test('cannot smuggle a file of the host in by a link', async () => {
    const dir = folder(GOOD)
    symlinkSync('/etc', join(dir, 'wiki', 'files', 'etc', 'host'))
    const wiki = (await loadRecipes([OURS, dir])).get('wiki')
    const inside = wiki?.tree.map((e) => JSON.stringify(e)).join() ?? ''
    expect(inside.includes('shadow')).toBe(false)
  })
  test('stands on one that is there, and never on itself', async () => {
    const missing = await loadRecipes([OURS, folder(GOOD.replace('debian-12', 'none'))])
    expect(() => recipeChain(missing, 'wiki')).toThrow(/none/)
    const circle = await loadRecipes([OURS, folder(GOOD.replace('debian-12', 'wiki'))])
    expect(() => recipeChain(circle, 'wiki')).toThrow()
  })
})

test('a kernel is known by its head', () => {
  const bz = Buffer.alloc(1024)
  bz.write('HdrS', 0x202)
  const elf = Buffer.alloc(64)
  elf.write('\x7fELF\x02', 0, 'latin1')
  elf.writeUInt16LE(62, 18)
  expect([isKernel(bz), isKernel(elf), isKernel(Buffer.alloc(2000)), isKernel(Buffer.from('#!/bin/sh'))]).toEqual([
    true,
    true,
    false,
    false,
  ])
})
