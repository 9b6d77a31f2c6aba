import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { PageferryError } from '@pageferry/base'
import { type Lab, withLab } from '@pageferry/lab'
import { type Limits, measureLimits } from './limits.js'
import type { LinkOptions } from './link/options.js'
import { renderPage } from './page/page.js'
import { type Benchmark, newResultFile, type ResultFile, writeResultFile } from './result.js'
import { describeMachineLine, formatBenchmark } from './table.js'

/** Destinations of the results besides the terminal. */
export interface OutputOptions {
  json?: string
  html?: string
}

export interface RunOptions {
  signal?: AbortSignal
  /** A slower link between the hosts, whose limits are measured too. */
  link?: LinkOptions
  out?: NodeJS.WritableStream
}

/** Is called with every benchmark as it ends. */
export type Report = (benchmark: Benchmark) => void

/** Checks before an hour of measuring, and not after it, that the results can be written. */
export function prepareOutput({ json, html }: OutputOptions): void {
  for (const path of [json, html]) {
    if (path === undefined) continue
    try {
      mkdirSync(dirname(resolve(path)), { recursive: true })
      writeFileSync(path, '', { flag: 'a' })
    } catch (error) {
      throw new PageferryError('BAD_REQUEST', `The result cannot be written: ${(error as Error).message}`)
    }
  }
}

export function writeOutput(file: ResultFile, { json, html }: OutputOptions): void {
  if (json !== undefined) writeResultFile(json, file)
  if (html !== undefined) writeFileSync(html, renderPage(file))
}

/**
 * Runs benchmarks in a lab of its own, after the limits of this machine. Tables are printed as they come. The files are
 * written even when a later benchmark fails, with the results so far.
 */
export async function runInLab(
  output: OutputOptions,
  work: (lab: Lab, limits: Limits, report: Report) => Promise<void>,
  { signal, link, out = process.stdout }: RunOptions = {},
): Promise<ResultFile> {
  prepareOutput(output)
  const file = newResultFile()
  const report: Report = (benchmark) => {
    file.benchmarks.push(benchmark)
    out.write(`${formatBenchmark(benchmark)}\n`)
  }
  out.write(`${describeMachineLine(file.machine)}\n\n`)
  try {
    await withLab(
      async (lab) => {
        const { limits, benchmark } = await measureLimits(lab, link)
        report(benchmark)
        await work(lab, limits, report)
      },
      { signal },
    )
  } finally {
    writeOutput(file, output)
  }
  return file
}
