/**
 * Present places of pages that mremap moved: translates between present addresses and those of the source. Pages that
 * never moved have no entry. So the table is empty for nearly every program, and small for the others.
 */
export interface Piece {
  /** Current page, its length, and the source's page of the first. */
  first: number
  nr: number
  source: number
}

export class MovedPages {
  /** Ascending by `first`, not overlapping; no piece maps to itself. */
  #pieces: Piece[] = []
  /** The same pieces ascending by `source`; no source page appears twice. */
  #bySource: Piece[] = []

  get isEmpty(): boolean {
    return this.#pieces.length === 0
  }

  get size(): number {
    return this.#pieces.length
  }

  clone(): MovedPages {
    const copy = new MovedPages()
    copy.#set(this.#pieces.map((piece) => ({ ...piece })))
    return copy
  }

  /** The source's page of a current page. */
  toSource(page: number): number {
    const piece = this.#pieces[lastNotAbove(this.#pieces, page, 'first')]
    return piece !== undefined && page < piece.first + piece.nr ? piece.source + (page - piece.first) : page
  }

  /**
   * Cuts a current range into runs that are contiguous at the source too. It skips places whose own page has moved away
   * and onto which no other page moved: the memory there is new and has no source.
   */
  forEachSource(
    first: number,
    nr: number,
    callback: (current: number, source: number, nr: number) => void,
  ): void {
    walk(this.#pieces, 'first', first, nr, (at, length, piece) => {
      if (piece !== undefined) return callback(at, piece.source + (at - piece.first), length)
      walk(this.#bySource, 'source', at, length, (page, part, elsewhere) => {
        if (elsewhere === undefined) callback(page, page, part)
      })
    })
  }

  /**
   * Cuts a range of the source's pages into runs that are contiguous here too. A run that never moved is reported at
   * its own address, without the parts onto which another page has moved.
   */
  forEachCurrent(
    source: number,
    nr: number,
    callback: (current: number, source: number, nr: number) => void,
  ) {
    walk(this.#bySource, 'source', source, nr, (at, length, piece) => {
      if (piece !== undefined) return callback(piece.first + (at - piece.source), at, length)
      walk(this.#pieces, 'first', at, length, (page, part, cover) => {
        if (cover === undefined) callback(page, page, part)
      })
    })
  }

  /** Forgets the translation of a current range: its pages are gone. */
  cut(first: number, nr: number): void {
    if (this.#pieces.length === 0) return
    const end = first + nr
    const kept: Piece[] = []
    for (const piece of this.#pieces) {
      const pieceEnd = piece.first + piece.nr
      if (pieceEnd <= first || piece.first >= end) {
        kept.push(piece)
        continue
      }
      if (piece.first < first) kept.push({ ...piece, nr: first - piece.first })
      if (pieceEnd > end) {
        kept.push({ first: end, nr: pieceEnd - end, source: piece.source + (end - piece.first) })
      }
    }
    this.#set(kept)
  }

  /** Adds pieces to ranges that were cut before. A piece that is back at its own address needs no entry. */
  add(pieces: readonly Piece[]): void {
    const moved = pieces.filter((piece) => piece.first !== piece.source)
    if (moved.length > 0) this.#set([...this.#pieces, ...moved])
  }

  #set(pieces: Piece[]): void {
    pieces.sort((a, b) => a.first - b.first)
    const merged: Piece[] = []
    for (const piece of pieces) {
      const last = merged.at(-1)
      const follows =
        last !== undefined && last.first + last.nr === piece.first && last.source + last.nr === piece.source
      if (follows) merged[merged.length - 1] = { ...last, nr: last.nr + piece.nr }
      else merged.push(piece)
    }
    this.#pieces = merged
    this.#bySource = merged.slice().sort((a, b) => a.source - b.source)
  }
}

/** Index of the last piece whose key is not above the page; -1 when there is none. */
function lastNotAbove(pieces: readonly Piece[], page: number, key: 'first' | 'source'): number {
  let low = 0
  let high = pieces.length
  while (low < high) {
    const middle = (low + high) >>> 1
    if (pieces[middle][key] <= page) low = middle + 1
    else high = middle
  }
  return low - 1
}

/** Cuts a range at the borders of the pieces: calls back for the parts inside a piece and those between. */
function walk(
  pieces: readonly Piece[],
  key: 'first' | 'source',
  first: number,
  nr: number,
  callback: (at: number, nr: number, piece: Piece | undefined) => void,
): void {
  const end = first + nr
  let i = lastNotAbove(pieces, first, key)
  if (i < 0 || pieces[i][key] + pieces[i].nr <= first) i++
  for (let at = first; at < end; ) {
    const piece = pieces[i] as Piece | undefined
    const inside = piece !== undefined && piece[key] <= at
    const border = piece === undefined ? end : inside ? piece[key] + piece.nr : piece[key]
    const to = Math.min(end, border)
    callback(at, to - at, inside ? piece : undefined)
    if (inside) i++
    at = to
  }
}
