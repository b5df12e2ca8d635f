/** All that commands print. Answers go to stdout, words about them to stderr; `--json` leaves stdout to the object alone. */
import { styleText } from 'node:util'
import type { Writable } from 'node:stream'
import { clean, safeJson } from '../text/clean.ts'

export type Tty = Writable & { isTTY?: boolean; columns?: number }
export type OutputOptions = { stdout: Tty; stderr: Tty; json: boolean; quiet: boolean; color: boolean }
export type Style = 'bold' | 'dim' | 'red' | 'green' | 'yellow' | 'cyan'
/** A cell: text, or text with a style. */
export type Cell = string | number | { text: string; style: Style }

export class Output {
  readonly options: OutputOptions
  constructor(options: OutputOptions) {
    this.options = options
  }
  get isJson(): boolean {
    return this.options.json
  }
  /** The answer as JSON, and nothing else. */
  json(value: unknown): void {
    this.options.stdout.write(`${safeJson(value, this.options.stdout.isTTY ? 2 : undefined)}\n`)
  }
  /** A line of the answer. */
  line(text = ''): void {
    this.options.stdout.write(`${text}\n`)
  }
  /** A line about what is going on; not with `--quiet`, nor beside JSON. */
  note(text: string): void {
    if (!this.options.quiet && !this.options.json) this.options.stderr.write(`${text}\n`)
  }
  /** A line that has to be seen even with `--quiet`. */
  warn(text: string): void {
    if (!this.options.json) this.options.stderr.write(`${this.style('yellow', text, this.options.stderr)}\n`)
  }
  style(style: Style, text: string, stream: Tty = this.options.stdout): string {
    if (!this.options.color || !stream.isTTY) return text
    return styleText(style, text, { validateStream: false })
  }
  /** Cells are cleaned here, so that no name can drive the terminal. */
  async table(head: string[], rows: Cell[][]): Promise<void> {
    const { default: Table } = await import('cli-table3')
    const none = ''
    const table = new Table({
      head: head.map((h) => this.style('bold', h)),
      style: { head: [], border: [], 'padding-left': 0, 'padding-right': 2 },
      chars: {
        top: none,
        'top-mid': none,
        'top-left': none,
        'top-right': none,
        bottom: none,
        'bottom-mid': none,
        'bottom-left': none,
        'bottom-right': none,
        left: none,
        'left-mid': none,
        mid: none,
        'mid-mid': none,
        right: none,
        'right-mid': none,
        middle: none,
      },
    })
    for (const row of rows) table.push(row.map((cell) => this.cell(cell)))
    for (const line of table.toString().split('\n')) this.line(line.trimEnd())
  }
  /** Name and value, one a line; empty values are left out. */
  async fields(pairs: [string, Cell | undefined][]): Promise<void> {
    const shown = pairs.filter((p): p is [string, Cell] => p[1] !== undefined && p[1] !== '')
    const width = Math.max(0, ...shown.map(([name]) => name.length))
    for (const [name, value] of shown) this.line(`${this.style('dim', name.padEnd(width))}  ${this.cell(value)}`)
  }
  cell(cell: Cell): string {
    if (typeof cell === 'object') return this.style(cell.style, clean(cell.text))
    return clean(String(cell))
  }
}
