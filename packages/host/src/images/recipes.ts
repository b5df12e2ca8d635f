import { createHash } from 'node:crypto'
import { constants } from 'node:fs'
import { lstat, open, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { fail, type Fault, toFault } from '@wadah/api/fault'
import { parseRecipe, type Recipe } from './recipe.ts'
import type { TarEntry } from './tar.ts'

/** A recipe that was found, with all its files read; or why it can't be used. */
export interface LoadedRecipe {
  name: string
  /** The folder it was read from. */
  dir: string
  recipe?: Recipe
  problem?: Fault
  /** What is laid over the guest's root, sorted by path. */
  tree: TarEntry[]
  scripts: { first_boot?: Buffer; after_install?: Buffer }
  /** Changes whenever anything of the recipe does. */
  digest: string
}

export type Recipes = ReadonlyMap<string, LoadedRecipe>

const MAX_TREE_BYTES = 256 * 1024 * 1024
const MAX_TREE_FILES = 20_000

/**
 * Read every recipe under `dirs`: each a folder of `NAME/recipe.toml`. A name found in an earlier folder wins, so that
 * what comes with the product can't be replaced by accident. Folders that don't exist are skipped; a recipe with a
 * mistake is there with its `problem`.
 */
export async function loadRecipes(dirs: readonly string[]): Promise<Recipes> {
  const found = new Map<string, LoadedRecipe>()
  for (const dir of dirs) {
    const names = await readdir(dir).catch(() => [])
    for (const name of names.sort()) {
      if (name.startsWith('.') || found.has(name)) continue
      const loaded = await loadRecipe(join(dir, name), name)
      if (loaded) found.set(name, loaded)
    }
  }
  return found
}

/**
 * The recipes to build one after the other, base first.
 * @throws WadahError `not_found`, `invalid`: the recipe's own problem, a base that is missing or leads in a circle.
 */
export function recipeChain(recipes: Recipes, name: string): (LoadedRecipe & { recipe: Recipe })[] {
  const chain: (LoadedRecipe & { recipe: Recipe })[] = []
  let next: string | undefined = name
  while (next !== undefined) {
    const found = recipes.get(next)
    const above = chain[0]
    if (!found && above)
      throw fail(
        'invalid',
        `${above.dir}/recipe.toml: \`base\` is "${next}", and there is no such recipe; there are: ${[...recipes.keys()].join(', ')}`,
        {
          field: '/recipe/base',
        },
      )
    if (!found)
      throw fail('not_found', `there is no recipe ${next}; there are: ${[...recipes.keys()].join(', ')}`, {
        field: '/recipe',
        remedy: 'wadah image recipes',
      })
    const { recipe } = found
    if (!recipe)
      throw fail(found.problem?.code ?? 'invalid', found.problem?.detail ?? `recipe ${next} can't be used`, {
        field: found.problem?.field,
      })
    if (chain.some((c) => c.name === next))
      throw fail(
        'invalid',
        `${found.dir}/recipe.toml: \`base\` leads in a circle: ${[next, ...chain.map((c) => c.name)].join(' → ')}`,
        {
          field: '/recipe/base',
        },
      )
    chain.unshift({ ...found, recipe })
    next = recipe.base
  }
  return chain
}

async function loadRecipe(dir: string, name: string): Promise<LoadedRecipe | undefined> {
  const file = join(dir, 'recipe.toml')
  try {
    const text = await readPlain(dir, 'recipe.toml').catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return undefined
      throw error
    })
    if (!text) return undefined
    const recipe = parseRecipe(text.toString('utf8'), file)
    if (recipe.name !== name)
      throw fail('invalid', `${file}: \`name\` is "${recipe.name}"; right would be the name of its folder, "${name}"`, {
        field: '/recipe/name',
      })
    const tree = await readTree(dir, recipe)
    const scripts: LoadedRecipe['scripts'] = {}
    for (const key of ['first_boot', 'after_install'] as const) {
      const path = recipe[key]
      if (path !== undefined) scripts[key] = await readNamed(dir, path, file, key)
    }
    return { name, dir, recipe, tree, scripts, digest: digestOf(text, tree, scripts) }
  } catch (error) {
    const known = toFault(error)
    const problem = known.code === 'internal' ? fail('invalid', `${file}: ${String(error)}`).fault : known
    return { name, dir, problem, tree: [], scripts: {}, digest: '' }
  }
}

/** What lies under files/, then what recipe.toml says of single files. */
async function readTree(dir: string, recipe: Recipe): Promise<TarEntry[]> {
  const entries = new Map<string, TarEntry>()
  let bytes = 0
  const walk = async (relative: string): Promise<void> => {
    for (const item of await readdir(join(dir, 'files', relative), { withFileTypes: true })) {
      const path = relative ? `${relative}/${item.name}` : item.name
      if (entries.size >= MAX_TREE_FILES) throw tooMuch(dir, `more than ${MAX_TREE_FILES} files`)
      if (item.isDirectory()) {
        entries.set(path, { kind: 'dir', path, mode: 0o755 })
        await walk(path)
      } else if (item.isFile()) {
        const data = await readPlain(dir, `files/${path}`)
        bytes += data.length
        if (bytes > MAX_TREE_BYTES) throw tooMuch(dir, `more than ${MAX_TREE_BYTES} bytes`)
        const executable = ((await lstat(join(dir, 'files', path))).mode & 0o100) !== 0
        entries.set(path, { kind: 'file', path, mode: executable ? 0o755 : 0o644, data })
      } else
        throw fail('invalid', `${dir}/files/${path} is neither a file nor a folder; links and devices are not taken`, {
          field: '/recipe/files',
          remedy: 'make links in the after_install script',
        })
    }
  }
  if (
    await lstat(join(dir, 'files')).then(
      (s) => s.isDirectory(),
      () => false,
    )
  )
    await walk('')
  for (const [i, file] of recipe.files.entries()) {
    const path = file.path.slice(1)
    const where = `files[${i}]`
    let entry = entries.get(path)
    if (file.content !== undefined) entry = { kind: 'file', path, mode: 0o644, data: Buffer.from(file.content) }
    else if (file.source !== undefined)
      entry = {
        kind: 'file',
        path,
        mode: 0o644,
        data: await readNamed(dir, file.source, `${dir}/recipe.toml`, `${where}.source`),
      }
    if (!entry)
      throw fail(
        'invalid',
        `${dir}/recipe.toml: \`${where}\` has no content and no source, and files${file.path} is not there`,
        {
          field: `/recipe/files/${i}/path`,
        },
      )
    entries.set(path, { ...entry, ...(file.mode === undefined ? {} : { mode: file.mode }), ...(file.owner ?? {}) })
  }
  return [...entries.values()].sort((a, b) => (a.path < b.path ? -1 : 1))
}

function tooMuch(dir: string, what: string): Error {
  return fail('invalid', `${dir}/files holds ${what}; large data belongs on a volume of its own`, {
    field: '/recipe/files',
  })
}

async function readNamed(dir: string, path: string, file: string, key: string): Promise<Buffer> {
  return readPlain(dir, path).catch((error: NodeJS.ErrnoException) => {
    const why =
      error.code === 'ENOENT'
        ? 'is not there'
        : error.code === 'ELOOP'
          ? 'is a link, and links are not followed'
          : String(error.code)
    throw fail('invalid', `${file}: \`${key}\`: ${join(dir, path)} ${why}`, { field: `/recipe/${key}` })
  })
}

/** Read a regular file below `dir`, following no link on the way. */
async function readPlain(dir: string, path: string): Promise<Buffer> {
  const parts = path.split('/')
  for (let i = 1; i < parts.length; i++) {
    const folder = await lstat(join(dir, ...parts.slice(0, i)))
    if (folder.isSymbolicLink()) throw Object.assign(new Error(`${path}: link`), { code: 'ELOOP' })
  }
  const handle = await open(join(dir, path), constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  try {
    const info = await handle.stat()
    if (!info.isFile()) throw Object.assign(new Error(`${path}: no file`), { code: 'not a file' })
    if (info.size > MAX_TREE_BYTES) throw Object.assign(new Error(`${path}: too large`), { code: 'too large' })
    return await handle.readFile()
  } finally {
    await handle.close()
  }
}

function digestOf(text: Buffer, tree: readonly TarEntry[], scripts: LoadedRecipe['scripts']): string {
  const hash = createHash('sha256').update(text)
  for (const e of tree)
    hash.update(`\0${e.kind} ${e.path} ${e.mode} ${e.user ?? ''}:${e.group ?? ''}\0`).update(e.data ?? '')
  return hash
    .update('\0')
    .update(scripts.first_boot ?? '')
    .update('\0')
    .update(scripts.after_install ?? '')
    .digest('hex')
}
