#!/bin/bash
# Starts a private one-node Slurm on this machine: start_slurm.sh FOLDER; start_slurm.sh FOLDER stop stops it.
# Needs Debian's slurm-wlm and munge, and root. Nothing is read or written outside FOLDER; SLURM_CONF=FOLDER/slurm.conf uses it.
set -euo pipefail
folder=$(realpath -m "$1")
export PATH=$PATH:/usr/sbin

if [ "${2:-}" = stop ]; then
  for daemon in slurmd slurmctld munged; do
    if [ -f "$folder/$daemon.pid" ]; then kill "$(cat "$folder/$daemon.pid")" || true; fi
  done
  exit
fi

mkdir -p "$folder/state" "$folder/spool"
chmod 755 "$folder"
if [ ! -f "$folder/munge.key" ]; then
  (umask 077 && dd if=/dev/urandom of="$folder/munge.key" bs=128 count=1 status=none)
fi
munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" --pid-file="$folder/munged.pid" \
  --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"

host=$(hostname -s)
read -r control daemon < <(python3 -c 'import socket
ports = [socket.socket() for _ in range(2)]
for port in ports: port.bind(("localhost", 0))
print(*(port.getsockname()[1] for port in ports))')
cat >"$folder/slurm.conf" <<EOF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$control
SlurmdPort=$daemon
SlurmUser=root
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
SchedulerParameters=sched_interval=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
export SLURM_CONF=$folder/slurm.conf
slurmctld
slurmd
for _ in $(seq 60); do
  if [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ]; then exit; fi
  sleep 1
done
echo "The node of $folder did not come up; see its logs." >&2
exit 1
