#!/bin/sh
# Gets what the tests marked "services" that belong to no single plugin need: Jaeger (v2, all in one), built from its Go
# module into $POINTSMAN_SERVICES (default ~/.cache/pointsman). Does nothing that is done already. The tests start and stop
# the server themselves, and are skipped, with the reason, where it is missing.
set -eu

# The last release whose module contains the command; Jaeger v2 has no module path of its own.
version=v1.76.0
cache=${POINTSMAN_SERVICES:-$HOME/.cache/pointsman}
binary=$cache/jaeger-$version/jaeger

if [ ! -x "$binary" ]; then
    if ! command -v go >/dev/null; then
        echo "Jaeger is missing: go 1.26 or newer is needed to build it; https://go.dev/dl, or as root apt-get install golang-go" >&2
        exit 1
    fi
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    # Not "go install", which refuses a module with replace directives.
    printf 'module example.com/jaeger\n\ngo 1.26\n' >"$work/go.mod"
    cd "$work"
    go get -tool "github.com/jaegertracing/jaeger/cmd/jaeger@$version"
    # Each compiler needs up to 1.4 GB.
    go build -p "${POINTSMAN_JOBS:-2}" -o "$work/jaeger" github.com/jaegertracing/jaeger/cmd/jaeger
    mkdir -p "$(dirname "$binary")"
    # Renamed last, so that a build that was interrupted is not taken for a complete one.
    mv "$work/jaeger" "$binary.part" && mv "$binary.part" "$binary"
fi
