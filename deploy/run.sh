#!/bin/sh
# make run: make the first model, serve it and show a stream; make the second while the first is served, then serve both
# until Ctrl-C. Models that are already there are not made again.
set -eu
PATH="$PWD/.venv/bin:$PATH"
unset ELMAN_SERVER  # The commands below are meant for the server that is started here.

server=
# Ctrl-C reaches the server as well, which then drains: wait for it, and return its exit status.
trap 'trap "" INT; [ -z "$server" ] || wait $server; exit $?' INT
trap '[ -z "$server" ] || kill -TERM $server; wait; exit $?' TERM
trap '[ -z "$server" ] || kill $server 2>/dev/null || true' EXIT

# An interrupted training continues where it stopped.
make_bundle() {
  [ ! -f "bundles/$1/manifest.json" ] || return 0
  if [ -f "runs/$1/config.json" ]; then
    elman train --resume "runs/$1"
  else
    elman train --preset "$1" --output "runs/$1"
  fi
  elman export "runs/$1" --output "bundles/$1"
}

serve() {
  elman serve "$@" --store runs/sessions.db &
  server=$!
  elman health --wait 60
  kill -0 $server 2>/dev/null || exit 1  # Another server has the address, and answered.
}

generate() {
  echo
  echo '$ elman generate "def read(self, " --max-tokens 400 --temperature 0.75 --seed 1'
  printf "def read(self, "
  elman generate "def read(self, " --max-tokens 400 --temperature 0.75 --seed 1
  echo
}

classify() {
  echo
  echo '$ elman classify --follow < example.py        # streaming syntax highlighting'
  printf 'def area(radius):\n    """Of a circle."""\n    return 3.14 * radius ** 2  # roughly\n' | elman classify --follow
}

# The model that is trained faster comes first.
make_bundle python-tags
if [ -f bundles/python/manifest.json ]; then
  serve bundles/python bundles/python-tags
  classify
else
  serve bundles/python-tags
  classify
  echo
  echo "The server answers on 127.0.0.1:50051. Meanwhile a second model is trained, which writes Python; then the server"
  echo "restarts to load it."
  make_bundle python
  kill -TERM $server
  wait $server
  serve bundles/python bundles/python-tags
fi
generate
echo
echo "The server answers on 127.0.0.1:50051; in another terminal: . .venv/bin/activate && elman generate 'class '"
echo "Ctrl-C stops it."
wait $server
