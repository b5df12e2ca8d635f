/** Asks on the terminal. */
import { fail } from '@wadah/api/fault'
import type { Cli } from '../cli.ts'
import { EXIT } from '../exit.ts'

/** One line; with `hidden` nothing of it is shown. Refuses when there is no terminal to ask on. */
export async function ask(cli: Cli, question: string, options: { hidden?: boolean } = {}): Promise<string> {
  const { stdin, stderr } = cli.io
  if (!stdin.isTTY || !stdin.setRawMode) {
    throw fail('invalid', cli.t('ask.no_tty', { question }), { remedy: 'wadah help login' })
  }
  stderr.write(`${question}: `)
  stdin.setRawMode(true)
  stdin.resume()
  let text = ''
  try {
    return await new Promise<string>((resolve, reject) => {
      stdin.on('data', function typed(data: Buffer) {
        for (const c of data.toString('utf8')) {
          if (c === '\r' || c === '\n') {
            stdin.off('data', typed)
            return resolve(text)
          }
          if (c === '\u0003' || c === '\u0004') {
            stdin.off('data', typed)
            return reject(Object.assign(new Error('interrupted'), { exit: EXIT.interrupted }))
          }
          if (c === '\u007f' || c === '\b') {
            if (text !== '' && !options.hidden) stderr.write('\b \b')
            text = Array.from(text).slice(0, -1).join('')
          } else if (c >= ' ') {
            text += c
            if (!options.hidden) stderr.write(c)
          }
        }
      })
    })
  } finally {
    stdin.setRawMode(false)
    stdin.pause()
    stderr.write('\n')
  }
}

/** A question that is answered with yes or no. Refuses when there is no terminal to ask on, naming `--yes`. */
export async function confirm(cli: Cli, question: string): Promise<boolean> {
  const { stdin } = cli.io
  if (!stdin.isTTY || !stdin.setRawMode) {
    throw fail('invalid', cli.t('ask.no_tty', { question }), { field: '--yes', remedy: cli.t('ask.give_yes') })
  }
  const answer = (await ask(cli, question)).trim().toLowerCase()
  return answer === 'y' || answer === 'yes' || answer === 'ya'
}
