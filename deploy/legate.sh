#!/bin/sh
# `legate` in the image.
exec node /opt/legate/build/sidecar/cli/main.js "$@"
