import type { Cli } from '../cli.ts'
import { EXIT, type ExitName } from '../exit.ts'
import type { MessageKey } from '../messages/catalogue.ts'

/** The table of `wadah help exit-codes`. */
export async function printExitCodes(cli: Cli): Promise<void> {
  const names = Object.keys(EXIT) as ExitName[]
  await cli.out.table(
    [cli.t('col.code'), cli.t('col.meaning')],
    names.map((name) => [EXIT[name], cli.t(`exit.${name}` as MessageKey)]),
  )
}
