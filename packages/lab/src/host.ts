import { execFile, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { promisify } from 'node:util'
import { PageferryError } from '@pageferry/base'
import type { Hierarchy } from './cgroups.js'
import { closeInherited } from './exec.js'
import { type HostName, hostAddress, hostDir } from './paths.js'
import { childrenOf, type HostState, identify, type ProcessIdentity } from './state.js'

const run = promisify(execFile)

/**
 * Difference between a host's uptime and this machine's, in seconds. Two real machines never agree, so a workload whose
 * CLOCK_MONOTONIC jumps on arrival fails here, too.
 */
const uptimeOffsetS: Record<HostName, number> = { a: 0, b: 1_000_000 }

/**
 * Runs as pid 1 of the new host, before tini replaces it. It mounts the cgroup hierarchies again, so that the host sees
 * its own cgroup as their root, as a machine would. It also gives the host a boot id of its own.
 */
const initScript = `
set -e
hostname "$1"
mount --bind "$2" /proc/sys/kernel/random/boot_id
shift 2
while [ $# -gt 0 ]; do
  umount -R "$2"
  if [ "$1" = 2 ]; then mount -t cgroup2 cgroup2 "$2"; else mount -t cgroup -o freezer cgroup "$2"; fi
  shift 2
done
ip link set lo up
echo ready
exec setsid tini -- sleep infinity </dev/null >/dev/null 2>&1
`

/** Joins the host's cgroups first: a new cgroup namespace has the cgroup of its creator as its root. */
const launchScript = `${closeInherited}
while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || exit 1; shift; done
shift
exec "$@"
`

/**
 * Starts one host: new network, mount, UTS, IPC, pid, time and cgroup namespaces over the same root filesystem. pid 1
 * is tini, which reaps orphans. Throws UNSUPPORTED_HOST with the message of unshare or mount.
 */
export async function startHost(
  name: string,
  host: HostName,
  subnet: number,
  cgroups: string[],
  hierarchies: Hierarchy[],
): Promise<HostState> {
  const bootIdPath = join(hostDir(name, host), 'boot_id')
  writeFileSync(bootIdPath, `${randomUUID()}\n`)
  const offset = String(uptimeOffsetS[host])
  const mounts = hierarchies
    .filter(({ mountPoint }) => cgroups.some((cgroup) => cgroup.startsWith(`${mountPoint}/`)))
    .flatMap(({ version, mountPoint }) => [String(version), mountPoint])
  const unshare = [
    ...['unshare', '--net', '--mount', '--uts', '--ipc', '--pid', '--time', '--propagation', 'private'],
    ...(mounts.length > 0 ? ['--cgroup'] : []),
    ...['--fork', '--kill-child', '--mount-proc', '--monotonic', offset, '--boottime', offset],
    ...['sh', '-c', initScript, 'init', `pageferry-${host}`, bootIdPath, ...mounts],
  ]
  const logPath = join(hostDir(name, host), 'host.log')
  const log = openSync(logPath, 'a')
  const child = spawn('bash', ['-c', launchScript, 'launch', ...cgroups, '--', ...unshare], {
    cwd: '/',
    detached: true,
    stdio: ['ignore', 'pipe', log],
  })
  closeSync(log)
  child.unref()
  const failed = (): PageferryError =>
    new PageferryError(
      'UNSUPPORTED_HOST',
      `Host ${host} of lab "${name}" did not start: ${readFileSync(logPath, 'utf8').trim() || 'no reason given'}`,
    )
  const stdout = child.stdout as Readable
  const ready = once(stdout, 'data')
  const ended = once(child, 'exit').then(() => Promise.reject(failed()))
  await Promise.race([ready, ended])
  ended.catch(() => {})
  stdout.destroy()
  const launcher = identify(child.pid as number)
  const init = identify(childrenOf(child.pid as number)[0] ?? 0)
  if (launcher === null || init === null) throw failed()
  return { init, launcher, address: hostAddress(subnet, host) }
}

/**
 * The cable: one veth pair, made inside host a's network namespace with its other end in b's. This machine's own
 * network never sees either end.
 */
export async function connectHosts(a: HostState, b: HostState): Promise<void> {
  const inNet = (host: HostState, ...command: string[]) =>
    run('nsenter', [`--net=/proc/${host.init.pid}/ns/net`, ...command])
  await inNet(a, ...'ip link add eth0 type veth peer name eth0 netns'.split(' '), String(b.init.pid))
  for (const host of [a, b]) {
    await inNet(host, 'ip', 'address', 'add', `${host.address}/24`, 'dev', 'eth0')
    await inNet(host, 'ip', 'link', 'set', 'eth0', 'up')
  }
}

export function hostProcesses(host: HostState): ProcessIdentity[] {
  return [host.init, host.launcher]
}
