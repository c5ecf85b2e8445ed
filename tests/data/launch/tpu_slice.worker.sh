#!/bin/bash
# digits-reverse on each host: `worker.sh install`, then `worker.sh run`. Written by `adalink launch tpu`.
set -euo pipefail
cd "$(dirname "$0")"

install() {
  # Most images have a Python older than 3.11; uv installs one.
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --allow-existing --python 3.11 .venv
  python3 -m uv pip install --quiet --python .venv/bin/python './wheel.whl[tpu]'
}

# The file `pid` has the process to which a stop sends SIGTERM, so that it saves and ends.
run() {
  export PATH="$PWD/.venv/bin:$PATH"
  echo $$ >pid
  exec adalink train --gin_file=gin/runs/quickstart.gin --gin_file=mine.gin "--gin.MODEL_DIR='gs://bucket/runs/digits_reverse'" --multiprocess --gin.NUM_DEVICES=32
}

"$1"
