#!/bin/sh
# Makes an image from this machine's node, its shell and their libraries: no registry is needed. ./make-image.sh NAME
set -eu
image=$1
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/usr/local/bin" "$root/bin" "$root/tmp"
cp "$(node -p process.execPath)" "$root/usr/local/bin/node"
cp -L /bin/sh "$root/bin/sh"
for program in "$root/usr/local/bin/node" "$root/bin/sh"; do
  for library in $(ldd "$program" | grep -o '/[^ ]*'); do
    mkdir -p "$root${library%/*}"
    cp -L "$library" "$root$library"
    # What glibc loads by name when it resolves a name.
    case $library in
      */libc.so.6) for extra in libnss_dns.so.2 libnss_files.so.2; do
        cp -L "${library%/*}/$extra" "$root${library%/*}/" 2> /dev/null || true
      done ;;
    esac
  done
done
tar -C "$root" -c . | docker import - "$image" > /dev/null
