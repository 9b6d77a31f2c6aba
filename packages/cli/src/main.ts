import { packageVersion } from '@pageferry/base'
import { addBenchCommands } from '@pageferry/bench/commands'
import { type Role, SERVICE_NAMES, SERVICE_PORTS, STATE_DIRS } from '@pageferry/service/client'
import { addSettings } from '@pageferry/service/options'
import { Argument, Command, CommanderError, InvalidArgumentError } from 'commander'
import { exitStatus, Interrupted, printError } from './errors.js'
import { interruptible } from './interrupt.js'

/*
 * Commands are imported when they are run: the lab and the command line itself must not load a web framework and an
 * addon that they do not use.
 */

function integer(smallest: number): (text: string) => number {
  return (text) => {
    if (!/^\d{1,15}$/.test(text) || Number(text) < smallest) {
      throw new InvalidArgumentError(`It must be a whole number from ${smallest} on.`)
    }
    return Number(text)
  }
}

function addServiceCommand(program: Command, role: Role, what: string): void {
  program
    .command(SERVICE_NAMES[role])
    .description(what)
    .option('--listen <host:port>', 'address to listen on', `127.0.0.1:${SERVICE_PORTS[role]}`)
    .option('--state-dir <dir>', 'journals and images of migrations', STATE_DIRS[role])
    .option(
      '--insecure-listen-anywhere',
      'accept addresses that other machines can reach (there is no TLS yet)',
    )
    .option('--spare-workers <n>', 'workers that wait for a migration, loaded and rehearsed', integer(0), 1)
    .action(async (options) => (await import('./commands/service.js')).runService(role, options))
}

/** Options common to the migrating commands. */
function addMigrationOptions(command: Command): Command {
  return addSettings(command).option('--report <file>', 'write the report as JSON')
}

function addLabCommands(program: Command): void {
  const lab = program.command('lab').description('two hosts, a and b, on this machine')
  lab
    .command('up <name>')
    .description('make a lab')
    .option('--no-services', 'do not start the services')
    .action(async (name, options) => (await import('./commands/lab.js')).up(name, options))
  lab
    .command('exec')
    .argument('<name>')
    .addArgument(new Argument('<host>').choices(['a', 'b']))
    .argument('[command...]')
    .usage('<name> a|b [-d | -t] -- <command...>')
    .description('run a command in a host; its output goes through a file, so that it can be migrated')
    .option('-d, --detach', 'leave it running and print its pid, as the host sees it')
    .option('-t, --terminal', 'give it this terminal (it cannot be migrated then)')
    .action(async (name, host, command, options) =>
      (await import('./commands/lab.js')).exec(name, host, command, options),
    )
  lab
    .command('urls <name>')
    .description("print the services' URLs, for migrate")
    .action(async (name) => (await import('./commands/lab.js')).urls(name))
  lab
    .command('down <name>')
    .description('end a lab and everything in it')
    .action(async (name) => (await import('./commands/lab.js')).down(name))
  addMigrationOptions(lab.command('run [command...]'))
    .usage('[options] -- <command...>')
    .description('make a lab, run a command in a, migrate it to b, wait for its end')
    .option('--settle <ms>', 'time to let it run before it is migrated', integer(0), 1000)
    .option('--new-lab <name>', 'name of the lab')
    .action(async (command, options) => (await import('./commands/lab-run.js')).labRun(command, options))
}

function createProgram(): Command {
  const program = new Command('pageferry')
    .description('Moves a running Linux process from one machine to another.')
    .version(packageVersion('cli'))
    .showHelpAfterError('(add --help for more)')
    .exitOverride()
  addServiceCommand(program, 'source', 'serve the machine that processes leave')
  addServiceCommand(program, 'destination', 'serve the machine that processes come to')
  program
    .command('check')
    .argument('[pid]', 'a process of this host', integer(1))
    .description('show why a process cannot be migrated, or the features of this host')
    .action(async (pid?: number) => (await import('./commands/check.js')).check(pid))
  addMigrationOptions(program.command('migrate'))
    .description('move a process')
    .requiredOption('--source <url>', 'dump-service on the source')
    .requiredOption('--destination <url>', 'restore-service on the destination')
    .requiredOption('--pid <pid>', 'the process, as the source sees it', integer(1))
    .action(async (options) => (await import('./commands/migrate.js')).migrateCommand(options))
  addLabCommands(program)
  addBenchCommands(program, interruptible)
  program
    .command('demo')
    .description('migrate a Python program between the two hosts of a lab')
    .action(async () => (await import('./commands/demo.js')).demo())
  return program
}

/** Runs the command line; sets the exit status at its end. */
async function main(argv: string[]): Promise<void> {
  try {
    await createProgram().parseAsync(argv)
  } catch (error) {
    // commander has printed its sentence. Help and version are no failures.
    if (!(error instanceof CommanderError)) printError(error)
    else if (error instanceof InvalidArgumentError) process.stderr.write(`error: ${error.message}\n`)
    process.exitCode = exitStatus(error)
    // Everything has been undone. Requests that still wait for an answer will not get one.
    if (error instanceof Interrupted) process.exit()
  }
}

await main(process.argv)
