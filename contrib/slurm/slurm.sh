# shellcheck shell=sh
# What Slurm tells of a job (slurm.conf(5), "Prolog and Epilog Scripts"), and what it is told of nodes.

# shellcheck source=contrib/jobs.sh
. "${0%/*}/../jobs.sh"

# begin_job NAME: see begin.
begin_job() {
  begin "$1" "${SLURM_JOB_ID:-unknown}" || return
  if [ -z "${SLURM_JOB_USER:-}" ] || [ -z "${SLURM_JOB_NODELIST:-}" ]; then
    say "SLURM_JOB_USER and SLURM_JOB_NODELIST are not set: slurmctld has to call this script."
    return 1
  fi
}

# may_deploy: whether the job is in a partition for jobs that deploy.
may_deploy() {
  for name in ${slurm_partitions-deploy}; do
    [ "$name" != "${SLURM_JOB_PARTITION:-}" ] || return 0
  done
  return 1
}

# end_of_job: when the job has to end, in seconds since 1970; nothing when it may run for ever. Not all versions of Slurm
# say it in the environment.
end_of_job() {
  end=${SLURM_JOB_END_TIME:-$(timeout -k 10 10 squeue -h -j "$SLURM_JOB_ID" -o %e 2> /dev/null)}
  case $end in
    *-*-*T*) date -d "$end" +%s ;;
    *[!0-9]*) ;;
    *) echo "$end" ;;
  esac
}

# reserve: keep the nodes of the job from other jobs until release. Slurm itself waits for no epilogue of its controller:
# a node is free as soon as the job has left it.
reserve() {
  reservation=kadeploy-$SLURM_JOB_ID
  ! quietly 10 scontrol show reservation "$reservation" || return 0
  run 30 scontrol create reservation "reservationname=$reservation" "nodes=$SLURM_JOB_NODELIST" \
    "users=$(id -un)" start=now duration=infinite flags=ignore_jobs,overlap
}

release() {
  run 30 scontrol delete "reservationname=kadeploy-$SLURM_JOB_ID"
}

# give_up NODES REASON: no job runs there until an administrator resumes them. Slurm may know a node by its short name.
give_up() {
  for name in "$1" "${1%%.*}"; do
    ! run 30 scontrol update "nodename=$name" state=drain "reason=$2" || return 0
  done
}
