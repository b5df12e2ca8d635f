/** The version of this CLI: the one of its package. */
import pkg from '../package.json' with { type: 'json' }

export function version(): string {
  return pkg.version
}
