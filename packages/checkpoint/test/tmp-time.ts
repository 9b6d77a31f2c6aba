import { start, kill } from './fixtures/start.js'
import { StoppedProcess } from '../src/remote/stopped-process.js'
import { schedulerFacts, lastProcessor, SchedulerClocks } from '../src/remote/interrupted.js'
const s = await start('registers')
for (let i=0;i<15;i++) { const a=performance.now(); const c=new SchedulerClocks(); c.offset(0); const b=performance.now(); c.offset(1); const d=performance.now(); const st=StoppedProcess.stop(s.pid,'all'); const e=performance.now(); st.resume(); const f=performance.now(); console.log([b-a,d-b,e-d,f-e].map(x=>x.toFixed(2)).join(' ')); Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20) }
kill(s.pid)
