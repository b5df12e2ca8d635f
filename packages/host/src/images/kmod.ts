/** Decisions about kernel modules, from the files that depmod writes. */

/**
 * The module files to insert for `wanted`, each after everything it needs, none twice.
 * @param modulesDep text of modules.dep: `path: dependency dependency …`
 * @param wanted names; `-` and `_` are the same. A name that is not there is built in or absent and is left out.
 */
export function moduleOrder(modulesDep: string, wanted: readonly string[]): string[] {
  const needs = new Map<string, { path: string; deps: string[] }>()
  const byPath = new Map<string, string>()
  for (const line of modulesDep.split('\n')) {
    const colon = line.indexOf(':')
    if (colon < 0) continue
    const path = line.slice(0, colon).trim()
    const name = moduleName(path)
    byPath.set(path, name)
    needs.set(name, {
      path,
      deps: line
        .slice(colon + 1)
        .split(/\s+/)
        .filter(Boolean),
    })
  }
  const order: string[] = []
  const seen = new Set<string>()
  const visit = (name: string): void => {
    const module = needs.get(name)
    if (!module || seen.has(name)) return
    seen.add(name)
    // modules.dep lists the nearest dependency first; the last one must go in first.
    for (const dep of [...module.deps].reverse()) visit(byPath.get(dep) ?? moduleName(dep))
    order.push(module.path)
  }
  for (const name of wanted) visit(moduleName(name))
  return order
}

/** The name the kernel knows a module file by: no folder, no suffix, `_` for `-`. */
export function moduleName(path: string): string {
  return (path.split('/').pop() ?? path).replace(/\.ko(\.(xz|zst|gz))?$/, '').replaceAll('-', '_')
}
