#!/bin/bash
# digits-reverse on each host: `worker.sh install`, then `worker.sh run`. Written by `adalink launch tpu`.
set -euo pipefail
cd "$(dirname "$0")"

install() {
  # The hosts' own Python is older than 3.11 on most images; uv brings one.
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --allow-existing --python 3.11 .venv
  python3 -m uv pip install --quiet --python .venv/bin/python './wheel.whl[tpu]'
}

# The file `pid` says which process is to be told to save and end.
run() {
  export PATH="$PWD/.venv/bin:$PATH"
  echo $$ >pid
  exec adalink train --gin_file=gin/runs/quickstart.gin --gin_file=mine.gin "--gin.MODEL_DIR='gs://bucket/runs/digits_reverse'" --multiprocess --gin.NUM_DEVICES=32
}

"$1"
