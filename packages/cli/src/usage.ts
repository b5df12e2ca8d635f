/** Commander's complaints in our words. */
import type { CommanderError } from 'commander'
import { type Fault, fault } from '@wadah/api/fault'
import type { MessageKey, Translate } from './messages/catalogue.ts'

const KEYS: Record<string, MessageKey> = {
  'commander.unknownOption': 'usage.unknown_option',
  'commander.unknownCommand': 'usage.unknown_command',
  'commander.missingArgument': 'usage.missing_argument',
  'commander.optionMissingArgument': 'usage.option_missing_argument',
  'commander.missingMandatoryOptionValue': 'usage.missing_option',
  'commander.excessArguments': 'usage.excess_arguments',
  'commander.invalidArgument': 'usage.invalid_argument',
  'commander.conflictingOption': 'usage.conflicting_option',
}

/** @param error with the offending word in quotes, as commander writes it */
export function usageFault(error: CommanderError, t: Translate): Fault {
  const key = KEYS[error.code]
  const what = /'([^']*)'/.exec(error.message)?.[1] ?? ''
  const hint = /\(Did you mean (?:one of )?([^)?]+)\??\)/.exec(error.message)?.[1]
  const text = key === undefined ? error.message.replace(/^error: /, '') : t(key, { what })
  return fault('invalid', hint === undefined ? text : `${text} ${t('usage.did_you_mean', { hint })}`, {
    remedy: 'wadah help',
  })
}
