#!/bin/bash
# sweep on each host: `worker.sh install`, `start`, `watch` and `stop`. Written by `adalink launch tpu`.
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
  trap : TERM # of a `stop` before there is a job
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

# Lets the job save and end, or ends what prepares it. Fails if nothing was started.
stop() {
  local process
  if [ -s pid ]; then process=$(cat pid); else process=-$(cat keeper); fi
  kill -TERM -- "$process" || true # it may have ended
}

# The file `pid` has the process to which `stop` sends SIGTERM.
run() {
  export PATH="$PWD/.venv/bin:$PATH"
  # These variables make this host a separate slice; without them JAX would wait for all hosts.
  export TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1 TPU_PROCESS_BOUNDS=1,1,1 TPU_VISIBLE_DEVICES=0,1,2,3
  local worker index
  worker=$(curl --fail --silent --show-error --header 'Metadata-Flavor: Google' \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)
  for ((index = worker; index < 6; index += 4)); do
    ADALINK_ARRAY_INDEX=$index adalink check-method my_method.Mine &
    echo $! >pid
    wait $!
  done
}

"$@"
