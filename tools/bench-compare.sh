#!/usr/bin/env bash
# bench-compare.sh BASE BENCH COUNT
# Compares benchmarks of this commit with those of BASE on this machine: two work trees, test
# binaries built first, then run in alternation COUNT times, so that whatever else the machine
# does falls on both alike. Trust the ratio and its p-value, not the absolute numbers.
set -euo pipefail
base=${1:-}
bench=$2
count=$3
top=$(git rev-parse --show-toplevel)
if [ -z "$base" ]; then
	echo "Say what to compare with: make bench-compare BASE=main~1 [BENCH=Commit] [COUNT=10]" >&2
	exit 1
fi
base=$(git rev-parse --verify --quiet "$base^{commit}") || { echo "There is no commit $1." >&2; exit 1; }
head=$(git rev-parse HEAD)
if [ -n "$(git status --porcelain -- '*.go')" ]; then
	echo "Note: changes that are not committed are not measured." >&2
fi
work=$(mktemp -d)
cleanup() {
	git worktree remove --force "$work/base" 2>/dev/null || true
	git worktree remove --force "$work/head" 2>/dev/null || true
	rm -rf "$work"
}
trap cleanup EXIT
git worktree add --quiet --detach "$work/base" "$base"
git worktree add --quiet --detach "$work/head" "$head"
for side in base head; do
	mkdir "$work/bin-$side"
	(
		cd "$work/$side"
		git ls-files '*_test.go' | xargs -r grep -lE '^func Benchmark' | xargs -r -n1 dirname | sort -u |
			while read -r pkg; do
				go test -c -o "$work/bin-$side/${pkg//\//_}.test" "./$pkg" </dev/null
				echo "$pkg" >>"$work/bin-$side/list"
			done
	)
done
for ((i = 1; i <= count; i++)); do
	for side in base head; do
		echo "round $i of $count: $side" >&2
		while read -r pkg; do
			(cd "$work/$side/$pkg" && "$work/bin-$side/${pkg//\//_}.test" -test.run '^$' -test.bench "$bench" -test.benchmem </dev/null) >>"$work/$side.txt"
		done < <(cat "$work/bin-$side/list" 2>/dev/null)
	done
done
cd "$top"
go tool -modfile tools/go.mod benchstat "base=$work/base.txt" "head=$work/head.txt"
