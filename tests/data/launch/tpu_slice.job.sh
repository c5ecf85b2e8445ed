#!/bin/bash
# digits-reverse, written by `adalink launch tpu`: v5e:4x8. Run it with: bash runs/launch/digits-reverse/job.sh
# It creates a queued resource, runs the job on all of its hosts, and deletes what it created, however it ends.
# The job outlives the connection to its hosts: if that is lost, the script connects again.
# Ctrl-C or SIGTERM stops the job, which saves first; a second one ends the script without waiting for that.
set -euo pipefail

name=digits-reverse
folder=runs/launch/digits-reverse
home=adalink/digits-reverse
gcloud=(gcloud compute tpus queued-resources)
where=(--project=my-project --zone=us-west4-a)
hosts=(--node=all --worker=all --batch-size=8)
ssh_flags=()
asked=false
started=false
running=
patience= # seconds after which a connection is ended; empty for none

# Both run in the background, since Bash handles no signal while it waits for a command in the foreground.
on_all() {
  "${gcloud[@]}" ssh "$name" "${where[@]}" ${ssh_flags[@]+"${ssh_flags[@]}"} "${hosts[@]}" --command="$1" <&0 &
  connection $!
}

copy() {
  "${gcloud[@]}" scp "${where[@]}" ${ssh_flags[@]+"${ssh_flags[@]}"} "$@" <&0 &
  connection $!
}

# Waits for a process, no longer than `patience`, and ends with its status.
connection() {
  if [ -n "$patience" ]; then
    local end=$((SECONDS + patience))
    while [ "$SECONDS" -lt "$end" ] && kill -0 "$1" 2>/dev/null; do sleep 1; done
    kill -KILL "$1" 2>/dev/null || true
  fi
  wait "$1"
}

# Prints the job's log until it has ended on all hosts, and ends with its status.
watch() {
  trap 'kill $! 2>/dev/null; exit 143' TERM
  local lines=+1 status
  while true; do
    status=0
    on_all "bash $home/worker.sh watch $lines" || status=$?
    if [ "$status" -eq 0 ] || on_all "[ -f $home/status ]"; then
      return "$status"
    fi
    case $("${gcloud[@]}" describe "$name" "${where[@]}" --format='value(state.state)') in
      FAILED | SUSPENDING | SUSPENDED | DELETING) return "$status" ;;
    esac
    echo "The connection to $name was lost, and is tried again; the job runs on." >&2
    lines=10
    sleep 30 & wait $!
  done
}

stop() {
  on_all "bash $home/worker.sh stop"
}

notice() {
  trap 'exit 143' INT TERM
  trap '' USR1 # that MAX_CHIP_HOURS ends soon; the job is being stopped already
  local status=143
  if [ -n "$running" ]; then
    if stop; then
      status=0
      wait "$running" || status=$?
    fi
  fi
  exit "$status"
}

# shellcheck disable=SC2317  # called by the trap
finish() {
  local status=$?
  trap '' INT TERM USR1
  trap - EXIT
  set +e
  # shellcheck disable=SC2046  # one word per process
  kill $(jobs -p) 2>/dev/null
  if $asked; then
    # If the slice was taken away, the job can be started again: exit status 75, as after a preemption notice.
    if [ "$status" -ne 0 ] && $started; then
      case $("${gcloud[@]}" describe "$name" "${where[@]}" --format='value(state.state)') in
        SUSPENDING | SUSPENDED) status=75 ;;
      esac
    fi
    if ! "${gcloud[@]}" delete "$name" "${where[@]}" --force --quiet; then
      echo "$name could not be deleted, and may still cost money. Delete it with:" >&2
      echo "  ${gcloud[*]} delete $name ${where[*]} --force --quiet" >&2
      [ "$status" -ne 0 ] || status=1
    fi
  fi
  exit "$status"
}

trap finish EXIT
trap notice INT TERM USR1

there=$("${gcloud[@]}" list "${where[@]}" --format='value(name.basename())')
if grep --quiet --fixed-strings --line-regexp "$name" <<<"$there"; then
  echo "A queued resource $name exists already. It is not this job's, and is left as it is: delete it, or give another --name." >&2
  exit 2
fi
asked=true
"${gcloud[@]}" create "$name" "${where[@]}" --accelerator-type=v5litepod-32 --runtime-version=v2-alpha-tpuv5-lite --node-id=digits-reverse --spot

failures=0
while true; do
  if state=$("${gcloud[@]}" describe "$name" "${where[@]}" --format='value(state.state)'); then
    failures=0
  else
    state=unknown failures=$((failures + 1))
  fi
  echo "$name is $state."
  case $state in
    ACTIVE) break ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING) exit 1 ;;
    unknown) [ "$failures" -lt 5 ] || exit 1 ;;
  esac
  sleep 30 & wait $!
done

# A new host may not accept connections yet.
failures=0
until on_all 'rm -f adalink/digits-reverse/pid adalink/digits-reverse/keeper && mkdir -p adalink/digits-reverse'; do
  failures=$((failures + 1))
  [ "$failures" -lt 5 ] || exit 1
  sleep 30 & wait $!
done
copy --recurse "${hosts[@]}" wheel.whl "$folder/worker.sh" "$folder"/files/few "$folder"/files/helper.py "$folder"/files/mine.gin "$folder"/files/more.gin "$folder"/files/other_tasks.py "$name:$home/"
on_all "bash $home/worker.sh install"
started=true
on_all "bash $home/worker.sh start"
watch &
running=$!
wait "$running"
running=
