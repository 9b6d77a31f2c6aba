/**
 * Every attribute that the kernel keeps for a process or thread, and its fate in a move. Memory and open files have lists of
 * their own (memory-map, descriptors/registry.ts). The tests follow this list. They compare moved attributes before and after a
 * move, and look for reported ones in the report.
 *
 *   moved     It is the same afterwards. If the destination cannot set it, the report says so.
 *   refused   The preflight refuses the process before the workload is touched.
 *   reported  The workload runs on without it, and the report says so (`notMoved`).
 */
export interface Attribute {
  readonly name: string
  readonly fate: 'moved' | 'refused' | 'reported'
  /** The way it travels, or the reason why it does not. */
  readonly reason: string
  /** Fields of /proc/PID/status that show it (proc_pid_status(5)). */
  readonly shown?: readonly string[]
}

const image = 'CRIU’s images have a place for it'
const ownEntry = 'an AttributeEntry: CRIU’s images have no place for it'

function moved(reason: string, attributes: Record<string, readonly string[]>): Attribute[] {
  return Object.entries(attributes).map(([name, shown]) => ({ name, fate: 'moved', reason, shown }))
}

export const attributes: readonly Attribute[] = [
  ...moved(image, {
    registers: [],
    'signal-mask': ['SigBlk'],
    'signal-actions': ['SigIgn', 'SigCgt'],
    'pending-signals': ['SigPnd', 'ShdPnd'],
    'alternate-stack': [],
    'robust-list': [],
    'tid-address': [],
    rseq: [],
    'death-signal': [],
    name: ['Name'],
    ids: ['Uid', 'Gid', 'Groups'],
    capabilities: ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb'],
    securebits: [],
    'no-new-privileges': ['NoNewPrivs'],
    nice: [],
    'scheduling-policy': [],
    limits: [],
    'oom-score-adj': [],
    'child-subreaper': [],
    'interval-timers': [],
    'posix-timers': [],
    directories: [],
    umask: ['Umask'],
    executable: [],
    'command-line': [],
    'auxiliary-vector': [],
    dumpable: [],
    'login-uid': [],
    membarrier: [],
    clocks: [],
    'process-ids': ['Tgid', 'Pid', 'NStgid', 'NSpid', 'NSpgid', 'NSsid'],
    threads: ['Threads'],
  }),
  ...moved(ownEntry, {
    'cpu-affinity': ['Cpus_allowed', 'Cpus_allowed_list'],
    'scheduler-slice': [],
    'utilization-clamps': [],
    'io-priority': [],
    'timer-slack': [],
    personality: [],
    'mce-kill': [],
    tsc: [],
    cpuid: [],
    'speculative-store-bypass': ['Speculation_Store_Bypass'],
    'indirect-branch-speculation': ['SpeculationIndirectBranch'],
    'l1d-flush': [],
    'memory-deny-write-execute': [],
    'memory-merge': [],
    'thp-disable': ['THP_enabled'],
    'coredump-filter': [],
    'memory-policy': [],
    'area-policy': [],
    'area-name': [],
    'file-signal': [],
    'autogroup-nice': [],
    'future-locks': ['VmLck'],
  }),
  {
    name: 'seccomp',
    fate: 'refused',
    reason: 'filters are not rebuilt yet',
    shown: ['Seccomp', 'Seccomp_filters'],
  },
  { name: 'tracer', fate: 'refused', reason: 'the tracer stays on the source', shown: ['TracerPid'] },
  {
    name: 'state',
    fate: 'refused',
    reason: 'a process that is stopped, dumps core or has exited is not moved',
    shown: ['State', 'CoreDumping', 'Kthread'],
  },
  {
    name: 'shadow-stack',
    fate: 'refused',
    reason: 'not rebuilt yet',
    shown: ['x86_Thread_features', 'x86_Thread_features_locked'],
  },
  {
    name: 'landlock-domain',
    fate: 'refused',
    reason: 'the kernel shows neither its rules nor that there is one',
  },
  { name: 'security-label', fate: 'refused', reason: 'policies of two hosts need not mean the same by it' },
  { name: 'local-descriptor-table', fate: 'refused', reason: 'not rebuilt yet' },
  { name: 'user-dispatch', fate: 'refused', reason: 'no system call could be injected' },
  { name: 'deadline', fate: 'refused', reason: 'the destination may have no bandwidth left to admit it' },
  { name: 'io-flusher', fate: 'refused', reason: 'it belongs to a device of the source' },
  { name: 'tagged-addresses', fate: 'refused', reason: 'not rebuilt yet', shown: ['untag_mask'] },
  { name: 'namespaces', fate: 'refused', reason: 'all but the time namespace must be the service’s own' },
  { name: 'children', fate: 'refused', reason: 'only single processes are moved yet' },
  { name: 'session', fate: 'refused', reason: 'it must lead a session of its own, without a terminal' },
  {
    name: 'cgroup',
    fate: 'reported',
    reason: 'its limits are the host’s',
    shown: ['Mems_allowed', 'Mems_allowed_list'],
  },
  { name: 'cpu-time', fate: 'reported', reason: 'no kernel can be told how much was used' },
  { name: 'core-scheduling', fate: 'reported', reason: 'only processes of one host can agree on it' },
  { name: 'message-queue', fate: 'reported', reason: 'System V objects stay on the source' },
  { name: 'semaphore-set', fate: 'reported', reason: 'System V objects stay on the source' },
  { name: 'login-session', fate: 'reported', reason: 'each kernel numbers its sessions' },
  { name: 'thread-keyring', fate: 'reported', reason: 'keys stay in the kernel that was given them' },
  { name: 'process-keyring', fate: 'reported', reason: 'keys stay in the kernel that was given them' },
  { name: 'session-keyring', fate: 'reported', reason: 'keys stay in the kernel that was given them' },
]

/** Fields of /proc/PID/status that are no state of the process: facts of the host, and counts that begin anew. */
export const factsOfTheHost: readonly string[] = [
  ...['PPid', 'Ngid', 'FDSize'],
  ...['VmPeak', 'VmSize', 'VmPin', 'VmHWM', 'VmRSS', 'RssAnon', 'RssFile', 'RssShmem', 'VmData', 'VmStk'],
  ...['VmExe', 'VmLib', 'VmPTE', 'VmSwap', 'HugetlbPages'],
  ...['SigQ', 'voluntary_ctxt_switches', 'nonvoluntary_ctxt_switches'],
]
