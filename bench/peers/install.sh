#!/usr/bin/env bash
# install.sh PEER…: puts peers for the benchmark into a folder of their own ($PETREL_BENCH_PEERS, default
# ~/.cache/petrel-bench): nchan from Debian's packages, unpacked and not installed; soketi from npm with the Node that its
# native WebSocket library wants. Besides, /var/lib/nginx is made. What is there already is left as it is.
set -euo pipefail
root=${PETREL_BENCH_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/petrel-bench}

nchan() {
	# Debian's nginx wants this folder as soon as nchan is loaded, whatever its settings say of others.
	[ -d /var/lib/nginx ] || mkdir -p /var/lib/nginx || { echo 'nchan: as root: mkdir -p /var/lib/nginx' >&2; return 1; }
	[ -x "$root/nchan/usr/sbin/nginx" ] && [ -e "$root/nchan/usr/lib/nginx/modules/ngx_nchan_module.so" ] && return
	command -v apt-get >/dev/null || { echo 'nchan: this is no Debian; it comes from its packages nginx and libnginx-mod-nchan' >&2; return 1; }
	rm -rf "$root/nchan" && mkdir -p "$root/nchan/packages"
	(
		cd "$root/nchan/packages"
		apt-get download -q nginx libnginx-mod-nchan || {
			echo 'nchan: no packages; as root: apt-get update' >&2
			exit 1
		}
		for p in *.deb; do dpkg-deb -x "$p" ..; done
	)
}

soketi() {
	[ -e "$root/soketi/node_modules/@soketi/soketi/bin/server.js" ] && return
	command -v npm >/dev/null || { echo 'soketi: npm is absent' >&2; return 1; }
	case $(uname -m) in
	x86_64) arch=x64 ;;
	aarch64) arch=arm64 ;;
	*) echo "soketi: no Node 18 for $(uname -m)" >&2; return 1 ;;
	esac
	rm -rf "$root/soketi" && mkdir -p "$root/soketi"
	# uWebSockets.js is named by a Git address, which npm here may not reach; this is the same release, repackaged, for Node 14 to 18.
	cat >"$root/soketi/package.json" <<-JSON
		{
			"private": true,
			"dependencies": { "@soketi/soketi": "1.6.1", "node-linux-$arch": "18.20.8" },
			"overrides": { "uWebSockets.js": "npm:@trufflesuite/uws-js-unofficial@20.10.0-unofficial.2" }
		}
	JSON
	npm install --prefix "$root/soketi" --no-audit --no-fund --loglevel=error || {
		rm -rf "$root/soketi/node_modules"
		return 1
	}
}

status=0
for peer in "$@"; do
	case $peer in
	nchan | soketi) "$peer" && echo "$peer: in $root/$peer" || { echo "$peer: not installed" >&2; status=1; } ;;
	*) echo "install.sh knows nchan and soketi, not $peer" >&2; status=1 ;;
	esac
done
exit $status
