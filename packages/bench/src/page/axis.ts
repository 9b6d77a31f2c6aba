import { escapeHtml } from './escape.js'

/** All plots have this shape; the page scales them to its width. Units are those of the viewBox. */
export const frame = { width: 480, height: 240, left: 72, right: 10, top: 10, bottom: 40 } as const

export interface Tick {
  /** 0 to 1 along the axis. */
  at: number
  label: string
}

/** Maps a value to a place from 0 to 1. */
export type Scale = (value: number) => number

export const plotX = (at: number): number => frame.left + at * (frame.width - frame.left - frame.right)
export const plotY = (at: number): number =>
  frame.height - frame.bottom - at * (frame.height - frame.top - frame.bottom)

/** Linear from 0, with ticks at 1, 2 or 5 times a power of ten. */
export function linearAxis(max: number, nrTicks = 5): { scale: Scale; ticks: Tick[] } {
  const top = max > 0 ? max : 1
  const rough = top / nrTicks
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = ([1, 2, 5, 10].find((factor) => factor * power >= rough) as number) * power
  const scale: Scale = (value) => value / top
  const ticks: Tick[] = []
  for (let value = 0; value <= top * 1.0001; value += step) {
    ticks.push({ at: scale(value), label: shortNumber(value) })
  }
  return { scale, ticks }
}

/** Whole powers of ten around all values. */
export function logAxis(
  min: number,
  max: number,
  label: (value: number) => string,
): { scale: Scale; ticks: Tick[] } {
  const low = Math.floor(Math.log10(min))
  const high = Math.max(low + 1, Math.ceil(Math.log10(max)))
  const scale: Scale = (value) => (Math.log10(Math.max(value, 10 ** low)) - low) / (high - low)
  const ticks: Tick[] = []
  for (let power = low; power <= high; power++)
    ticks.push({ at: scale(10 ** power), label: label(10 ** power) })
  return { scale, ticks }
}

function shortNumber(value: number): string {
  if (value >= 1e6) return `${Number((value / 1e6).toPrecision(3))} M`
  if (value >= 1e4) return `${Number((value / 1e3).toPrecision(3))} k`
  return String(Number(value.toPrecision(3)))
}

/** Grid, numbers and names of both axes around `body`. */
export function drawFrame(
  body: string,
  x: { ticks: Tick[]; name: string },
  y: { ticks: Tick[]; name: string },
  title: string,
): string {
  const { width, height, left, right, bottom } = frame
  const vertical = x.ticks.map(
    ({ at, label }) =>
      `<line class="grid" x1="${fixed(plotX(at))}" x2="${fixed(plotX(at))}" y1="${plotY(0)}" y2="${plotY(1)}"/>` +
      `<text x="${fixed(plotX(at))}" y="${height - bottom + 15}" text-anchor="middle">${escapeHtml(label)}</text>`,
  )
  const horizontal = y.ticks.map(
    ({ at, label }) =>
      `<line class="grid" x1="${left}" x2="${width - right}" y1="${fixed(plotY(at))}" y2="${fixed(plotY(at))}"/>` +
      `<text x="${left - 5}" y="${fixed(plotY(at) + 4)}" text-anchor="end">${escapeHtml(label)}</text>`,
  )
  const middle = (plotY(0) + plotY(1)) / 2
  return [
    `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escapeHtml(title)}">`,
    ...vertical,
    ...horizontal,
    body,
    `<text x="${(left + width - right) / 2}" y="${height - 6}" text-anchor="middle">${escapeHtml(x.name)}</text>`,
    `<text transform="translate(12 ${middle}) rotate(-90)" text-anchor="middle">${escapeHtml(y.name)}</text>`,
    '</svg>',
  ].join('')
}

/** A coordinate: hundredths of a unit are invisible. */
export function fixed(value: number): string {
  return String(Math.round(value * 100) / 100)
}
