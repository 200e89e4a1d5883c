# shellcheck shell=sh
# What prologues and epilogues of batch schedulers share: rights for a job's nodes, and the way back to production.
#
# No step can hang, and a step that fails keeps none of the next from being tried. All is told on standard error, and in
# the system's log. Settings: jobs.conf.

set -f # names and partitions such as * stand for themselves

# begin NAME JOB: read the settings; from here on lines in the log are those of NAME and the job.
begin() {
  script=$1 job=$2
  conf=${KADEPLOY_JOBS_CONF:-/etc/kadeploy/jobs.conf}
  tools='' partitions='' environment='' owner=root production=''
  rights_limit=60 free_limit=120 reboot_limit=1800 deploy_limit=3600 grace=600
  if [ ! -r "$conf" ]; then
    say "$conf cannot be read: nothing is done."
    return 1
  fi
  # shellcheck disable=SC1090
  . "$conf"
  PATH=${tools:+$tools:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  export PATH
  for given in "$partitions" "$environment" "$production"; do
    [ -n "$given" ] && continue
    say "$conf: partitions, environment and production are needed. Nothing is done."
    return 1
  done
}

say() {
  printf '%s: job %s: %s\n' "$script" "$job" "$*" >&2
  ! command -v logger > /dev/null || timeout 5 logger -t "$script" -- "job $job: $*" 2> /dev/null || :
}

# run SECONDS COMMAND...: its exit status; what it said is told when it fails.
run() {
  limit=$1
  shift
  said=$(timeout -k 10 "$limit" "$@" 2>&1 < /dev/null) && return
  status=$?
  [ "$status" -ne 124 ] || said="it took longer than $limit s"
  say "$1 ended with status $status: $(printf '%s' "$said" | tail -n 5)"
  return "$status"
}

# quietly SECONDS COMMAND...: as run, and nothing is told.
quietly() {
  timeout -k 10 "$@" > /dev/null 2>&1 < /dev/null
}

# rights run|quietly OPTION...: karights3, for all partitions that are jobs'.
rights() {
  how=$1
  shift
  for part in $partitions; do
    set -- "$@" -p "$part"
  done
  "$how" "$rights_limit" karights3 "$@"
}

# grant USER NODES END: rights until END, in seconds since 1970; without END until they are taken back.
grant() {
  rights quietly -d -m "$2" "--user=$1" # of a job that was prepared before: its end may be another one now
  if [ -n "$3" ]; then
    set -- "$1" "$2" --until "$(date -u -d "@$(($3 + grace))" '+%Y-%m-%d %H:%M:%SZ')"
  else
    set -- "$1" "$2"
  fi
  user=$1 nodes=$2
  shift 2
  rights run -a -o -m "$nodes" "--user=$user" "$@" && say "rights for $user on $nodes"
}

# take_back USER NODES
take_back() {
  rights run -d -m "$2" "--user=$1" && say "$1 has no rights on $2 any more"
}

# restore NODES: bring the production system back. Nodes on which it is not in the end go to give_up, which the script of
# the scheduler defines: give_up NODES REASON.
restore() {
  work=$(mktemp -d) || return
  trap 'rm -rf "$work"' EXIT
  lost=$1
  await_free "$lost"
  try "$reboot_limit" kareboot3 -r env_recorded -c && return
  say "the production system is deployed again on $lost"
  try "$deploy_limit" kadeploy3 && return
  say "an administrator is needed: the production system is not on $lost"
  case $lost in
    *\[*) names=$lost ;;
    *) names=$(printf '%s' "$lost" | tr , ' ') ;;
  esac
  for name in $names; do
    give_up "$name" "Kadeploy: not on the production system after job $job"
  done
  return 1
}

# try SECONDS COMMAND...: whether the production system is on all the nodes of $lost then; those without stay in $lost.
try() {
  : > "$work/ko"
  run "$@" -m "$lost" -e "$environment" -u "$owner" -p "$production" -n "$work/ko"
  status=$?
  [ -s "$work/ko" ] || return "$status"
  lost=$(paste -s -d , "$work/ko")
  return 1
}

# await_free NODES: wait for what the user's operations still do; they end when the rights do.
await_free() {
  waited=0
  while [ "$waited" -lt "$free_limit" ]; do
    timeout -k 10 30 kanodes3 -d -m "$1" 2> /dev/null < /dev/null |
      grep -q '^[^,]*,\(deploying\|rebooting\|powering\),' || return 0
    sleep 2
    waited=$((waited + 2))
  done
  say "$1: an operation is still running there after $free_limit s."
}
