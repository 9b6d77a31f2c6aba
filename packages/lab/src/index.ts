export { takeDown } from './down.js'
export {
  followFile,
  passThrough,
  type RunResult,
  type StartedProcess,
  type StartOptions,
  startInHost,
  superviseInHost,
} from './exec.js'
export { Lab, LabHost, type LabOptions, withLab } from './lab.js'
export { type HostName, hostAddress, hostNames, labDir } from './paths.js'
export { Reach, withReach } from './relay.js'
export { type RunningService, type ServiceCommand, serviceUrl } from './services.js'
export { migrateInLab, waitForExit } from './session.js'
export { isAlive, type LabState, listLabs, readState, requireLab } from './state.js'
