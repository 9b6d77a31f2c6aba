#!/bin/sh
# Installs and builds whatever is missing: npm run setup. npm start and npm test begin with it, so it has to be quick
# when there is nothing to do. For root on Debian 12 with Node 20; elsewhere it says what to install by hand.
set -eu
cd "$(dirname "$0")/.."

say() { echo "setup: $*" >&2; }
fail() {
	say "$*"
	exit 1
}

# newer TARGET SOURCE...: TARGET is missing, or something in the sources has changed since.
newer() {
	target=$1
	shift
	[ -e "$target" ] || return 0
	[ -n "$(find "$@" -type f -newer "$target" -print -quit 2>/dev/null)" ]
}

# Two set-ups at once (npm start in one terminal, npm test in another) would build into the same directories.
exec 9<package.json
if command -v flock >/dev/null; then flock 9; fi

node -e 'process.exit(Number(process.versions.node.split(".")[0]) >= 20 ? 0 : 1)' 2>/dev/null ||
	fail "Node.js 20 or newer is needed"

# Compilers for the addon and the static programs, libzstd for the addon; namespaces and their network (util-linux, mount,
# iproute2, tini, procps) for the lab; python3 for node-gyp, the demo and the tests' workloads.
packages="python3 gcc g++ make libc6-dev libzstd-dev util-linux mount iproute2 procps tini"
if command -v dpkg >/dev/null; then
	missing=
	for package in $packages; do
		dpkg -s "$package" 2>/dev/null | grep -q '^Status: install ok installed' || missing="$missing $package"
	done
	if [ -n "$missing" ]; then
		[ "$(id -u)" = 0 ] || fail "these Debian packages are missing:$missing"
		say "installing$missing"
		export DEBIAN_FRONTEND=noninteractive
		apt-get update -qq
		# shellcheck disable=SC2086 # a list
		apt-get install -y -qq --no-install-recommends $missing >/dev/null
	fi
else
	for tool in python3 gcc g++ make nsenter mount ip tini; do
		command -v "$tool" >/dev/null || fail "$tool is missing; on Debian: apt-get install $packages"
	done
fi

# install and not ci: ci refuses a lock file without the linter's builds for other platforms, and not every registry has
# all of those. No install scripts: the addon is built below, with headers that do not have to be fetched.
if [ ! -e node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
	say "installing npm packages"
	npm install --no-save --ignore-scripts --no-audit --no-fund --loglevel=error >&2
	touch node_modules/.package-lock.json
fi
PATH=$PWD/node_modules/.bin:$PATH

# The links of npm's workspaces. npm makes them too, but it also touches its own record when it only updates the lock
# file, and a package that is new in a checkout would then be missing.
mkdir -p node_modules/@pageferry
for package in packages/*/; do
	name=$(basename "$package")
	[ -e "node_modules/@pageferry/$name" ] || ln -sfn "../../packages/$name" "node_modules/@pageferry/$name"
done

for package in packages/*/; do
	package=${package%/}
	[ -e "$package/scripts/generate.mjs" ] || continue
	# Empty or missing, or older than the .proto files or the generator.
	oldest=$(find "$package/generated" -type f 2>/dev/null | xargs -r ls -t | tail -n 1)
	if newer "${oldest:-$package/generated/none}" proto "$package/scripts"; then
		say "generating ${package#packages/}"
		npm run --silent generate --workspace "$package" >&2
		find "$package/generated" -type f -exec touch {} +
	fi
done

addon=packages/kernel/build/Release/pageferry_kernel.node
if newer "$addon" packages/kernel/native packages/kernel/binding.gyp; then
	say "building the addon"
	# Node's own headers, when they were installed with it; otherwise node-gyp downloads them.
	prefix=$(node -p 'require("path").dirname(require("path").dirname(process.execPath))')
	if [ -e "$prefix/include/node/node_api.h" ]; then set -- "--nodedir=$prefix"; else set --; fi
	node-gyp configure build --silent -C packages/kernel "$@" >/dev/null
	touch "$addon"
fi
make --silent -C packages/kernel/programs >&2
make --silent -C packages/bench/programs >&2
if [ -e test/workloads/Makefile ]; then make --silent -C test/workloads >&2; fi

tsc -b >&2
if newer packages/cli/bundle/pageferry.js packages/*/dist/src scripts/bundle.mjs package-lock.json; then node scripts/bundle.mjs; fi

# The link that npm makes for packages/cli's "bin" is there only after an install that knew the file.
mkdir -p node_modules/.bin
[ -e node_modules/.bin/pageferry ] || ln -sf ../../packages/cli/bin/pageferry.js node_modules/.bin/pageferry
