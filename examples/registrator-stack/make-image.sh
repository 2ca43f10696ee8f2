#!/bin/sh
# Makes an image from this machine's static busybox (Debian: package busybox-static): no registry is needed.
# ./make-image.sh NAME
set -eu
image=$1
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/bin" "$root/tmp" "$root/www"
cp "$(command -v busybox)" "$root/bin/busybox"
for program in sh httpd wget test sleep; do ln -s busybox "$root/bin/$program"; done
echo ok > "$root/www/health"
echo 'hello from the stack' > "$root/www/index.html"
tar -C "$root" -c . | docker import - "$image" > /dev/null
