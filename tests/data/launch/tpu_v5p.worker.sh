#!/bin/bash
# digits-reverse on each host: `worker.sh install`, `worker.sh start`, `worker.sh watch`. Written by `adalink launch tpu`.
set -euo pipefail
cd "$(dirname "$0")"

install() {
  # Most images have a Python older than 3.11; uv installs one.
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --allow-existing --python 3.11 .venv
  python3 -m uv pip install --quiet --python .venv/bin/python './wheel.whl[tpu]'
}

# Runs the job so that it outlives the connection that starts it.
start() {
  rm -f pid status
  setsid nohup bash worker.sh keep >>log 2>&1 </dev/null &
  echo $! >keeper
}

keep() {
  local status=0
  bash worker.sh run || status=$?
  echo "$status" >status
}

# Prints the log from a line on, and ends with the job's status. A job that was killed, or whose host started again, has none.
watch() {
  tail --lines="$1" --follow --pid="$(cat keeper)" --sleep-interval=0.2 log
  [ -f status ] || echo 1 >status
  return "$(cat status)"
}

# The file `pid` has the process to which a stop sends SIGTERM, so that it saves and ends.
run() {
  export PATH="$PWD/.venv/bin:$PATH"
  echo $$ >pid
  exec adalink train --gin_file=gin/runs/quickstart.gin --gin_file=mine.gin "--gin.MODEL_DIR='gs://bucket/runs/digits_reverse'" --multiprocess --gin.NUM_DEVICES=8
}

"$@"
