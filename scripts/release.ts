/**
 * A daemon as another release would build it, of the same sources: with another version and other levels of records in it. For trying
 * hosts of two releases beside each other; the product itself has no switch for it.
 *
 *     node scripts/release.ts FOLDER VERSION [OLDEST_LEVEL [LEVEL]]
 *
 * makes FOLDER/bin/wadahd.
 */
import { chmodSync, copyFileSync, mkdirSync, symlinkSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { bundleDaemon } from './bundle.ts'

const ROOT = join(import.meta.dirname, '..')
const [folder, version, oldest = '1', newest = '1'] = process.argv.slice(2)
if (folder === undefined || !/^\d+\.\d+\.\d+$/.test(version ?? '') || !/^\d+ \d+$/.test(`${oldest} ${newest}`)) {
  process.stderr.write('usage: node scripts/release.ts FOLDER VERSION [OLDEST_LEVEL [LEVEL]]\n')
  process.exit(2)
}
/** As they stand in the sources, and in what is compiled of them. */
const CONSTANTS: readonly [RegExp, string][] = [
  [/\bVERSION = '[^']*'/, `VERSION = '${version}'`],
  [/\bOLDEST_LEVEL = \d+/, `OLDEST_LEVEL = ${oldest}`],
  [/\bLEVEL = \d+/, `LEVEL = ${newest}`],
]
const changed = new Set<string>()
await bundleDaemon(join(folder, 'packages/daemon/dist'), [
  {
    name: 'release',
    setup(build) {
      build.onLoad({ filter: /(daemon\/src\/version\.ts|cluster\/dist\/members\/records\.js)$/ }, async ({ path }) => {
        let contents = await readFile(path, 'utf8')
        for (const [from, to] of CONSTANTS) {
          if (!from.test(contents)) continue
          contents = contents.replace(from, to)
          changed.add(to)
        }
        return { contents, loader: path.endsWith('.ts') ? 'ts' : 'js' }
      })
    },
  },
])
// One that was renamed must not make every trial of two releases one of a single release.
if (changed.size !== CONSTANTS.length) throw new Error(`only these were found: ${[...changed].join(', ')}`)
mkdirSync(join(folder, 'bin'), { recursive: true })
copyFileSync(join(ROOT, 'bin/wadahd'), join(folder, 'bin/wadahd'))
chmodSync(join(folder, 'bin/wadahd'), 0o755)
for (const shared of ['node_modules', 'recipes']) symlinkSync(join(ROOT, shared), join(folder, shared))
