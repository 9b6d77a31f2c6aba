// test-group: pure

import { ptrace } from '@pageferry/kernel'
import t from 'tap'
import { repairSpuriousEintr, rewound, signed } from '../src/remote/interrupted.js'
import { SYS } from '../src/remote/syscalls.js'
import { registers } from './fixtures/registers.js'

const { REG } = ptrace
const restartBlock = -516n

t.test('a call that is started again: rewound for the user, left to the kernel otherwise', async (t) => {
  for (const error of [-512, -513, -514]) {
    const found = registers({ orig_rax: SYS.pause, rax: error })
    const user = rewound(found)
    t.equal(user[REG.rip], 0x40_0ffen)
    t.equal(user[REG.rax], BigInt(SYS.pause))
    t.equal(signed(user[REG.orig_rax]), -1n, 'the kernel is not to restart it once more')
    t.same(repairSpuriousEintr(found, false), found, 'the kernel does it by itself')
  }
  const sleeping = rewound(registers({ orig_rax: SYS.nanosleep, rax: restartBlock }))
  t.equal(sleeping[REG.rax], BigInt(SYS.restart_syscall), 'the kernel knows the deadline')
  t.equal(sleeping[REG.rip], 0x40_0ffen)
  const running = registers({ orig_rax: -1, rax: -512 })
  t.equal(rewound(running)[REG.rip], running[REG.rip], 'a value in rax that is not the end of a call')
  const done = registers({ orig_rax: SYS.read, rax: 5 })
  t.equal(rewound(done)[REG.rip], done[REG.rip])
  t.equal(rewound(done)[REG.rax], 5n)
})

t.test('EINTR that only our stop has caused', async (t) => {
  const found = registers({ orig_rax: SYS.epoll_wait, rax: -4 })
  t.equal(signed(repairSpuriousEintr(found, false)[REG.rax]), -514n)
  t.equal(signed(repairSpuriousEintr(found, true)[REG.rax]), -4n, 'a signal is there: EINTR is right')
  t.equal(signed(found[REG.rax]), -4n, 'the argument stays')
  const read = registers({ orig_rax: SYS.read, rax: -4 })
  t.equal(
    signed(repairSpuriousEintr(read, false)[REG.rax]),
    -4n,
    'a call that restarts by itself has its own reason',
  )
})
