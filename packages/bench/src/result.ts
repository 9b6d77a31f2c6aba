import { readFileSync, writeFileSync } from 'node:fs'
import { cpus, loadavg, release, totalmem } from 'node:os'
import { PageferryError } from '@pageferry/base'

/** Version of the files that `--json` writes; another number is another format. */
const resultSchema = 2

/** The best that this machine can do, measured in the same run of the command. */
export interface Limit {
  name: string
  value: number
}

export interface Metric {
  name: string
  unit: string
  better: 'lower' | 'higher'
  /** One value per run, in the order of the runs. */
  values: number[]
  limits?: Limit[]
}

export interface HistogramResult {
  name: string
  /** One per run: HdrHistogram V2 of nanoseconds, deflated, base64. */
  runs: string[]
}

export interface SeriesResult {
  name: string
  /** Unit of the second number of a point; the first is milliseconds. */
  unit: string
  kind: 'bars' | 'line'
  /** One list of points per run. */
  runs: [ms: number, value: number][][]
}

export interface PartsResult {
  name: string
  unit: string
  /** One per run; the parts in the order in which they happen. */
  runs: Record<string, number>[]
}

export interface Benchmark {
  benchmark: 'limits' | 'faults' | 'blackout' | 'precopy' | 'slowdown'
  /** Names the benchmark with its important options. `compare` uses it to find the same one in another file. */
  title: string
  options: Record<string, unknown>
  metrics: Metric[]
  histograms: HistogramResult[]
  series: SeriesResult[]
  parts: PartsResult[]
  /** The raw measurements: the reports of the migrations. */
  raw: unknown[]
}

export interface Machine {
  cpu: string
  cores: number
  memoryMiB: number
  kernel: string
  node: string
  transparentHugepages: string
  /** Load before the measurements: shows what else was running. */
  load1: number
}

export interface ResultFile {
  schema: typeof resultSchema
  takenAt: string
  machine: Machine
  benchmarks: Benchmark[]
}

function describeMachine(): Machine {
  const hugepages = readOr('/sys/kernel/mm/transparent_hugepage/enabled', '[none]')
  return {
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cores: cpus().length,
    memoryMiB: Math.round(totalmem() / 2 ** 20),
    kernel: release(),
    node: process.version,
    transparentHugepages: /\[(\w+)\]/.exec(hugepages)?.[1] ?? 'unknown',
    load1: Math.round((loadavg()[0] as number) * 100) / 100,
  }
}

function readOr(path: string, otherwise: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return otherwise
  }
}

export function emptyBenchmark(
  benchmark: Benchmark['benchmark'],
  title: string,
  options: Record<string, unknown>,
): Benchmark {
  return { benchmark, title, options, metrics: [], histograms: [], series: [], parts: [], raw: [] }
}

export function newResultFile(): ResultFile {
  return {
    schema: resultSchema,
    takenAt: new Date().toISOString(),
    machine: describeMachine(),
    benchmarks: [],
  }
}

export function writeResultFile(path: string, file: ResultFile): void {
  writeFileSync(path, `${JSON.stringify(file)}\n`)
}

/** @throws BAD_REQUEST when it is no result file, or one of another version. */
export function readResultFile(path: string): ResultFile {
  let file: Partial<ResultFile>
  try {
    file = JSON.parse(readFileSync(path, 'utf8'))
  } catch (error) {
    throw new PageferryError('BAD_REQUEST', `${path} cannot be read: ${(error as Error).message}`)
  }
  if (file?.schema !== resultSchema || !Array.isArray(file.benchmarks)) {
    throw new PageferryError('BAD_REQUEST', `${path} is not a result of "pageferry bench" of this version.`)
  }
  return file as ResultFile
}

/** The middle value, or the mean of the two in the middle. 0 without values. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  if (sorted.length === 0) return 0
  if (sorted.length % 2 === 1) return sorted[middle] as number
  return ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2
}

export function metricNamed({ metrics, title }: Benchmark, name: string): Metric {
  const metric = metrics.find((candidate) => candidate.name === name)
  if (metric === undefined) throw new PageferryError('INTERNAL', `"${title}" has no metric "${name}"`)
  return metric
}
