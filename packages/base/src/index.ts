export * from './errors.js'
export * from './log.js'
export * from './record-file.js'
export * from './units.js'
