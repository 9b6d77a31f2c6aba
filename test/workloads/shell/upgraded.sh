#!/bin/bash
# A shell script after an upgrade of the machine: mv(1) has replaced the shell and one of its libraries, as a package manager
# does. Its here-string is long, so that the shell keeps it in a file without a name.
#
# usage: upgraded.sh LOG MARKER [SEED], as in workload.py. It starts no process while it works.

log=$1 marker=$2 directory=${1%/*}
program=$directory/bash-copy
library=$directory/libtinfo.so.6

fail() {
	echo "FAILED $*" >>"$log"
	exit 1
}

if [[ ! /proc/$$/exe -ef $program ]]; then
	cp /bin/bash "$program"
	cp "$(ldd /bin/bash | sed -n 's/.* => \(.*libtinfo[^ ]*\) .*/\1/p')" "$library"
	LD_LIBRARY_PATH=$directory exec "$program" "$0" "$@"
fi
for old in "$program" "$library"; do
	cp /bin/true "$old.new"
	mv "$old.new" "$old"
done
for old in "$program" "$library"; do
	grep -q "$old (deleted)" /proc/$$/maps || fail "it does not run from the old $old"
done

# Nothing is ever written to this pipe: a read from it is a pause.
exec {end}< <(:)
exec {quiet}<>"/proc/self/fd/$end"
exec {end}<&-

printf -v document 'line %d\n' {0..30000}
step=0
{
	[[ $(readlink /proc/$$/fd/0) == *" (deleted)" ]] || fail 'the here-string is no deleted file'
	echo ready >>"$log"
	until [[ -e $marker ]]; do
		read -r line
		[[ $line == "line $step" ]] || fail "line $step is \"$line\""
		[[ /proc/$$/exe -ef $program ]] && fail 'it runs from the new program'
		echo "step $step" >>"$log"
		read -r -t 0.005 -u "$quiet"
		step=$((step + 1))
	done
} <<<"$document"
echo done >>"$log"
