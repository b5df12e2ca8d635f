/** A plan in words: `+` made, `~` changed, `-` deleted, `>` started or stopped. */
import type { Translate } from '../messages/catalogue.ts'
import type { Style } from '../out/output.ts'
import { clean } from '../text/clean.ts'
import type { Action, Change, Obstacle } from './plan.ts'

export type Line = { text: string; style?: Style }

export function actionLines(a: Action, t: Translate): Line[] {
  const what = `${a.kind} ${a.name}`
  switch (a.do) {
    case 'create':
      return [
        { text: `+ ${what}${a.start ? `, ${t('apply.started')}` : ''}`, style: 'green' },
        ...Object.entries(a.body)
          .filter(([field]) => field !== 'name')
          .map(([field, value]) => ({ text: `    ${field}: ${shown(field, value)}` })),
      ]
    case 'edit':
      return [
        {
          text: `~ ${what}${a.stop ? ` (${t('apply.stops')})` : a.later.length > 0 ? ` (${t('apply.later', { fields: [...new Set(a.later)].join(', ') })})` : ''}`,
          style: 'yellow',
        },
        ...a.changes.map(changeLine),
      ]
    case 'delete':
      return [{ text: `- ${what}${a.running ? ` (${t('apply.runs')})` : ''}`, style: 'red' }]
    case 'restart':
      return [{ text: `> ${what}: ${t('apply.restart', { fields: a.fields.join(', ') })}`, style: 'cyan' }]
    default:
      return [{ text: `> ${what}: ${t(`apply.do_${a.do}`)}`, style: 'cyan' }]
  }
}

function changeLine({ field, from, to }: Change): Line {
  return { text: `    ${field}: ${shown(field, from)} → ${shown(field, to)}` }
}

/** JSON, without secrets, and not longer than a line. */
function shown(field: string, value: unknown): string {
  if (value === undefined) return '-'
  const text = JSON.stringify(value, (key, inner: unknown) => (key === 'password' ? '***' : inner))
  const short = field === 'password' ? '***' : text.length > 160 ? `${text.slice(0, 157)}…` : text
  return clean(short)
}

/** `servers.yaml:12:5: vm web: /nics/0: …` */
export function obstacleText(o: Obstacle): string {
  const place = o.doc?.at(...o.path)
  const where = place === undefined ? '' : `${place.file}:${place.line}:${place.column}: `
  const path = o.path.length === 0 ? '' : ` /${o.path.join('/')}:`
  return `${where}${o.kind} ${o.name}:${path} ${o.text}${o.remedy === undefined ? '' : ` (${o.remedy})`}`
}
