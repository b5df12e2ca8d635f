import { defineConfig } from 'vitest/config'

// Tests run on the sources: no stale build can pass for them.
const alias = [{ find: /^@wadah\/([a-z]+)\/(.+)$/, replacement: `${import.meta.dirname}/packages/$1/src/$2.ts` }]
const resolve = { alias }

export default defineConfig({
  test: {
    projects: [
      {
        resolve,
        test: {
          name: 'unit',
          include: ['packages/*/test/**/*.test.ts', 'scripts/test/**/*.test.ts'],
          exclude: ['**/*.system.test.ts', '**/node_modules/**'],
          // A machine that is busy is slow; what hangs is found all the same.
          testTimeout: 60_000,
        },
      },
      {
        resolve,
        test: {
          name: 'system',
          include: ['packages/*/test/**/*.system.test.ts'],
          // Real QEMU under TCG on two cores: files one after the other, generous limits against hangs only.
          fileParallelism: false,
          testTimeout: 120_000,
          hookTimeout: 300_000,
        },
      },
      {
        resolve,
        test: {
          name: 'e2e',
          include: ['tests/e2e/**/*.test.ts', 'tests/faults/*.test.ts'],
          fileParallelism: false,
          testTimeout: 300_000,
          hookTimeout: 600_000,
        },
      },
      {
        resolve,
        test: {
          name: 'labs',
          include: ['tests/labs/**/*.test.ts'],
          fileParallelism: false,
          testTimeout: 300_000,
          hookTimeout: 600_000,
        },
      },
    ],
  },
})
