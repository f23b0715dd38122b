#!/bin/sh
# Starts a real Slurm cluster of one node on loopback in a folder of its own, or stops it by its pids.
# It must never touch another Slurm or munge of the machine, nor listen on any other interface.
#
#   slurm.sh start FOLDER CPUS PORT PORT    needs root and Debian's slurm-wlm and munge; prints
#                                           SLURM_CONF's value
#   slurm.sh stop FOLDER
set -eu

action=$1
folder=$2

pids() {
    cat "$folder"/slurmctld.pid "$folder"/slurmd.pid "$folder"/munged.pid 2>/dev/null || true
}

# What jobs leave behind: they, and only they, have this cluster's configuration in their environment.
of_jobs() {
    for environment in /proc/[0-9]*/environ; do
        if { tr '\0' '\n' < "$environment"; } 2>/dev/null | grep -qx "SLURM_CONF=$folder/slurm.conf"
        then
            pid=${environment#/proc/}
            pid=${pid%/environ}
            case $(cat "/proc/$pid/comm" 2>/dev/null) in
                slurmstepd | srun | slurm_script) echo "$pid" ;;
            esac
        fi
    done
}

if [ "$action" = stop ]; then
    export SLURM_CONF="$folder/slurm.conf"
    scancel --me 2>/dev/null || true
    for _ in $(seq 100); do # a job that is torn down while its cluster stops waits for it for ever
        [ -n "$(squeue --noheader 2>/dev/null)" ] || break
        sleep 0.1
    done
    for pid in $(pids); do
        kill "$pid" 2>/dev/null || true
    done
    for pid in $(pids); do
        for _ in $(seq 50); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -9 "$pid" 2>/dev/null || true
    done
    for pid in $(of_jobs); do
        kill -9 "$pid" 2>/dev/null || true
    done
    exit 0
fi

cpus=$3
node=$(hostname -s)
mkdir -p "$folder/state" "$folder/spool"
chmod 0755 "$folder"

head -c 1024 /dev/urandom > "$folder/munge.key"
chmod 0400 "$folder/munge.key"
munged --force --num-threads=2 --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"

cat > "$folder/slurm.conf" <<CONF
ClusterName=faults
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$4
SlurmdPort=$5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
# A job that is requeued waits until its credential has expired: two minutes by default.
AuthInfo=socket=$folder/munge.socket,cred_expire=10
MessageTimeout=60
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
MinJobAge=30
KillWait=5
SchedulerParameters=sched_interval=2,batch_sched_delay=0
NodeName=$node NodeAddr=127.0.0.1 CPUs=$cpus State=UNKNOWN
PartitionName=faults Nodes=$node Default=YES MaxTime=INFINITE OverSubscribe=NO State=UP
CONF

export SLURM_CONF="$folder/slurm.conf"
slurmctld
slurmd -N "$node"
for _ in $(seq 1000); do
    [ "$(sinfo -h -o %T 2>/dev/null)" = idle ] && { echo "$SLURM_CONF"; exit 0; }
    sleep 0.2
done
echo "Slurm did not come up; see $folder/*.log" >&2
tail -n 5 "$folder"/*.log >&2
"$0" stop "$folder"
exit 1
