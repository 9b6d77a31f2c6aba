/** Facts from the log of assets/demo.py. */
export interface DemoLog {
  lines: number
  hosts: { host: string; lines: number }[]
  /** By the program's own CLOCK_MONOTONIC. */
  clockS: number
  longestPauseMs: number
  usualPauseMs: number
  /** Sentences; empty when the log looks as if the program had never moved. */
  problems: string[]
}

/** More than the downtime of a migration and less than the difference between two hosts' uptimes. */
const clockJumpS = 60

/** Reads `COUNTER PID HOST MONOTONIC CHECKSUM` lines. */
export function checkLog(text: string, pid: number): DemoLog {
  const problems: string[] = []
  const hosts: DemoLog['hosts'] = []
  const pauses: number[] = []
  const rows = text.split('\n').filter((line) => line !== '')
  let before: number | undefined
  rows.forEach((row, index) => {
    const [counter, itsPid, host, monotonic] = row.split(' ')
    const clock = Number(monotonic)
    if (Number(counter) !== index + 1) problems.push(`line ${index + 1} has the counter ${counter}`)
    if (Number(itsPid) !== pid) problems.push(`line ${index + 1} was written by process ${itsPid}`)
    if (before !== undefined) {
      if (!(clock >= before && clock - before < clockJumpS)) {
        problems.push(`its clock went from ${before} to ${clock} at line ${index + 1}`)
      }
      pauses.push(Math.round((clock - before) * 1000))
    }
    before = clock
    const last = hosts.at(-1)
    if (last?.host === host) last.lines += 1
    else hosts.push({ host: host ?? '', lines: 1 })
  })
  if (hosts.length !== 2)
    problems.push(`the log was written on ${hosts.length} hosts one after the other, not on 2`)
  const sorted = [...pauses].sort((a, b) => a - b)
  return {
    lines: rows.length,
    hosts,
    clockS: pauses.reduce((sum, pause) => sum + pause, 0) / 1000,
    longestPauseMs: sorted.at(-1) ?? 0,
    usualPauseMs: sorted[Math.floor(sorted.length / 2)] ?? 0,
    problems,
  }
}
