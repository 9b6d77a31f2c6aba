#!/bin/sh
# Runs one service in a container: entrypoint.sh dump-service|restore-service [OPTION...]
#
# The workloads live in the container, too: if this script ended, so would they. So a service that crashed or was
# killed is started again, and takes its migrations over.
set -eu

restart_pause_s=1
usage=2 # exit status for options that are wrong: they will not be right the next time

# Mount points of the cgroup hierarchies with a freezer, as in packages/checkpoint/src/freezer.ts.
freezers() {
	awk '$(NF-2) == "cgroup2" || $(NF-2) == "cgroup" && $NF ~ /(^|,)freezer(,|$)/ { print $5 }' /proc/self/mountinfo
}

# Container engines mount cgroups read-only, but freezing a process needs a cgroup of its own. The mount shows
# only this container's part of the hierarchy. v1 hierarchies without the freezer stay as they are.
for mount in $(freezers); do mount -o remount,bind,rw "$mount"; done

# A migrated process keeps its pid, so two hosts must not hand out the same ones. /proc/sys is mounted read-only, too.
if [ -n "${PAGEFERRY_FIRST_PID:-}" ]; then
	mount -o remount,bind,rw /proc/sys
	echo $((PAGEFERRY_FIRST_PID - 1)) >/proc/sys/kernel/ns_last_pid
	mount -o remount,bind,ro /proc/sys
fi

# A v1 freezer holds even a killed process, and with it the container. The signal comes first: a frozen original must
# not run again for one instruction.
end_frozen() {
	for mount in $(freezers); do
		for cgroup in "$mount"/pageferry-*/; do
			[ -e "$cgroup/freezer.state" ] || continue
			for pid in $(cat "$cgroup/cgroup.procs"); do kill -KILL "$pid"; done
			echo THAWED >"$cgroup/freezer.state"
		done
	done
}

stopping=
service=
stop() {
	stopping=yes
	[ -z "$service" ] || kill -TERM "$service" 2>/dev/null || true
}
trap stop TERM INT

while :; do
	pageferry "$@" &
	service=$!
	status=0
	wait "$service" || status=$?
	# A signal to this script ends the wait as well; the service then needs a moment to close.
	while kill -0 "$service" 2>/dev/null; do
		status=0
		wait "$service" || status=$?
	done
	if [ -n "$stopping" ] || [ "$status" = 0 ] || [ "$status" = "$usage" ]; then break; fi
	echo "entrypoint: the $1 ended with status $status; it is started again" >&2
	sleep "$restart_pause_s"
done
end_frozen
exit "$status"
