/** Bundles the CLI and the daemon: one file each starts quicker and takes less memory than a thousand. */
import { join } from 'node:path'
import { build, type Plugin } from 'esbuild'

const ROOT = join(import.meta.dirname, '..')
const common = {
  absWorkingDir: ROOT,
  bundle: true,
  platform: 'node',
  target: 'node24',
  format: 'esm',
  sourcemap: true,
  legalComments: 'none',
  logLevel: 'warning',
  minifySyntax: true,
  // CommonJS packages inside an ES module still ask for require.
  banner: {
    js: "import { createRequire as __wadahRequire } from 'node:module'; const require = __wadahRequire(import.meta.url);",
  },
  outExtension: { '.js': '.mjs' },
} as const

/** The CLI. */
const bundleCli = () =>
  build({
    ...common,
    entryPoints: { wadah: 'packages/cli/src/main.ts' },
    outdir: 'packages/cli/dist',
    splitting: true,
    chunkNames: 'chunks/[name]-[hash]',
  })

/** The daemon with its store's worker; `outdir` and `plugins` are for tests that want it otherwise. */
export async function bundleDaemon(outdir = 'packages/daemon/dist', plugins: Plugin[] = []): Promise<void> {
  await Promise.all([
    build({
      ...common,
      entryPoints: { wadahd: 'packages/daemon/src/main.ts' },
      outdir,
      plugins,
      splitting: true,
      chunkNames: 'chunks/[name]-[hash]',
    }),
    build({ ...common, entryPoints: { 'store-worker': 'packages/store/src/sqlite/worker.ts' }, outdir, plugins }),
  ])
}

if (import.meta.main) await Promise.all([bundleCli(), bundleDaemon()])
