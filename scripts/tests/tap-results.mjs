// Counts the TAP output of a test file and makes it readable.

import { relative } from 'node:path'
import { Parser } from 'tap-parser'
import { root } from './groups.mjs'

/** Comments are shown only for a failed file: they include the logs of its services. */
const maxCommentChars = 16_000

export class TapResults {
  passed = 0
  failed = 0
  skipped = 0
  failures = []
  #comments = ''
  #parser = new Parser()

  constructor() {
    this.#count(this.#parser)
  }

  get total() {
    return this.passed + this.failed + this.skipped
  }

  write(bytes) {
    this.#parser.write(bytes)
  }

  end() {
    this.#parser.end()
    if (this.failed > 0 && this.#comments !== '') this.failures.at(-1).text += `\n${this.#comments}`
  }

  fail(title, text) {
    this.failed += 1
    this.failures.push({ title, text })
  }

  /** Counts leaf assertions. The line that a subtest leaves in its parent does not count. */
  #count(parser, path = []) {
    let child = null
    parser.on('child', (sub) => {
      child = { failed: this.failed }
      this.#count(sub, [...path, sub.name])
    })
    parser.on('assert', (assertion) => {
      const summaryOf = child
      child = null
      const bad = !assertion.ok && !assertion.todo && !assertion.skip
      if (summaryOf !== null && (!bad || this.failed > summaryOf.failed)) return
      const title = [...path, assertion.name].filter(Boolean).join(' > ')
      if (assertion.skip || assertion.todo) {
        const reason = assertion.skip || assertion.todo
        this.skipped += 1
        if (!/kernel/i.test(String(reason))) {
          this.fail(title, `skipped without a reason in the kernel: ${reason}`)
        }
      } else if (assertion.ok) this.passed += 1
      else this.fail(title, formatDiagnostics(assertion.diag))
    })
    parser.on('bailout', (reason) => this.fail(path.filter(Boolean).join(' > '), `bailed out: ${reason}`))
    parser.on('comment', (text) => {
      // tap's own: "# Subtest: name", "# time=12ms".
      if (/^# (Subtest|time=|failed \d)/.test(text)) return
      this.#comments = (this.#comments + text).slice(-maxCommentChars)
    })
  }
}

function formatDiagnostics(diag) {
  if (!diag) return ''
  const { at, source, diff, stack, found, wanted, ...rest } = diag
  const place = at?.fileName && `${relative(root, at.fileName.replace('file://', ''))}:${at.lineNumber}`
  const shown = diff === undefined && found !== undefined ? { wanted, found, ...rest } : rest
  const fields = Object.entries(shown).map(
    ([key, value]) => `${key}: ${typeof value === 'string' ? value : JSON.stringify(value)}`,
  )
  return [place, source?.trimEnd(), diff?.trimEnd(), ...fields, stack?.trimEnd()].filter(Boolean).join('\n')
}
