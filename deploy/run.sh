#!/bin/sh
# What `make run` does when the bundles are there: serve them, show that it streams, go on serving until Ctrl-C.
set -eu
PATH="$PWD/.venv/bin:$PATH"

unset ELMAN_SERVER  # This one is meant, and none elsewhere.
elman serve "$@" --store runs/sessions.db &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
# Ctrl-C reaches the server as well, which then drains: wait for it, and end as it ends.
trap 'trap "" INT; wait $server; exit $?' INT
trap 'kill -TERM $server; wait $server; exit $?' TERM
elman health --wait 60
kill -0 $server 2>/dev/null || exit 1  # Another one has the address, and has answered.

echo
echo '$ elman generate "def read(self, " --max-tokens 400 --temperature 0.75 --seed 1'
printf "def read(self, "
elman generate "def read(self, " --max-tokens 400 --temperature 0.75 --seed 1
echo
echo
echo '$ elman classify --follow < example.py        # streaming syntax highlighting'
printf 'def area(radius):\n    """Of a circle."""\n    return 3.14 * radius ** 2  # roughly\n' | elman classify --follow
echo
echo "elman serves on 127.0.0.1:50051; in another terminal: . .venv/bin/activate && elman generate 'class '"
echo "Ctrl-C ends it."
wait $server
