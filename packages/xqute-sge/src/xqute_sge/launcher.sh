#!/bin/bash
# What Grid Engine runs, for one job as for each task of an array: it starts the job's wrapper, and stays, because Grid Engine
# knows no grace. A deletion kills at once; with -notify it sends USR2 first, to every process of the job. The command does not
# see that one (it is ignored there); the launcher does, and sends what it means: TERM, time to clean up, KILL.
#
# `launcher.py` renders it: the lines between #@ are an example, and comments and indentation are dropped.
#@ parameters
xq_workdir=/tmp
xq_folders='0 ' # the jobs' in it, in the order of the tasks, in columns (an array takes bash milliseconds); -: nothing is to be done
xq_width=2      # of a column
xq_tag=tag      # what the claims of these attempts are named after
xq_wrapper=job.wrapped.sge
xq_grace_ds=100 # tenths of a second between TERM and KILL
xq_limit_s=0    # the job's h_rt; 0: none is known
xq_wait_ds=300  # tenths of a second until the job's folder must be seen
xq_restarts=''  # 1: Grid Engine may start the job again
#@

# What it exits with where the job's own code would mean something else to Grid Engine (99, 100), or to us.
xq_rc_unspeakable=117 xq_rc_unseen=118 xq_rc_time_limit=119 xq_rc_deleted=120

# A read from what nothing is ever written to is a pause without a process. To make that takes one, so only whoever pauses does.
xq_piped=''
xq_pause() {
    if [[ -z $xq_piped ]]; then exec 8<> <(:); fi
    xq_piped=1
    read -r -t 0.1 -u 8
}

# Somebody wants the job ended. Where nothing was started yet, nothing will be.
# shellcheck disable=SC2317,SC2329  # reached through the trap
xq_end() {
    trap '' USR1 USR2 TERM INT HUP XCPU
    xq_why=$xq_rc_deleted
    if ((xq_limit_s > 0 && SECONDS >= xq_limit_s - 1)); then xq_why=$xq_rc_time_limit; fi
    # Who asks why it was ended finds it here at once; the accounting comes later, if at all.
    printf '%s\n' "$xq_why" >"$xq_dir/job.sge.$xq_tag"
    xq_pid=$!
    [[ $xq_pid ]] || exit "$xq_why"
    kill -s TERM -- "-$xq_pid"
    while kill -0 "$xq_pid" && ((xq_grace_ds-- > 0)); do xq_pause; done
    # The wrapper last, so that it can tell the end of its command.
    xq_kill_session "$xq_pid"
    for ((xq_n = 20; xq_n > 0; xq_n--)); do
        kill -0 "$xq_pid" || break
        xq_pause
    done
    xq_kill_session ''
    kill -s KILL -- "-$xq_pid"
} 2>/dev/null

# KILL all of our session but ourselves and $1, whatever process groups they have made.
# shellcheck disable=SC2317,SC2329  # likewise
xq_kill_session() {
    local file line fields pid
    for file in /proc/[0-9]*/stat; do
        read -r line <"$file" || continue
        pid=${line%% *}
        # shellcheck disable=SC2206  # numbers
        fields=(${line##*) })
        if [[ ${fields[3]} == "$$" && $pid != "$$" && $pid != "$1" ]]; then kill -s KILL "$pid"; fi
    done
}

export XQUTE_NATIVE_ID=$JOB_ID
xq_place=0
if [[ ${SGE_TASK_ID-undefined} != undefined ]]; then
    XQUTE_NATIVE_ID+=.$SGE_TASK_ID
    xq_place=$((SGE_TASK_ID - 1))
fi
xq_folder=${xq_folders:xq_place*xq_width:xq_width}
xq_dir=$xq_workdir/${xq_folder// }
if [[ $xq_dir == "$xq_workdir/-" ]]; then exit 0; fi
# A network file system may need a moment until it shows what was written just now.
for ((xq_n = xq_wait_ds; xq_n > 0; xq_n--)); do
    if [[ -r $xq_dir/$xq_wrapper ]]; then break; fi
    xq_pause
done
if ((xq_n == 0)); then
    echo "xqute: this host cannot see $xq_dir/$xq_wrapper" >&2
    exit "$xq_rc_unseen"
fi
# The attempt was given up: the wrapper that is there now may be of a later one.
if [[ $xq_restarts && ${RESTARTED:-0} != 0 ]]; then
    # What was said of the end of the start before.
    : >"$xq_dir/job.sge.$xq_tag"
elif [[ -e $xq_dir/job.start.$xq_tag ]]; then
    exit 121
fi

xq_why=''
trap xq_end USR2 TERM INT HUP
trap : USR1 XCPU
# A process group of its own, so that what is sent to it is not sent to us. Braces leave INT and QUIT as they are.
set -m
{
    trap - USR1 TERM INT HUP XCPU
    trap '' USR2
    exec /bin/bash -p "$xq_dir/$xq_wrapper" ${xq_restarts:+"$xq_tag"}
} </dev/null 8>&- &
xq_pid=$!
set +m
while :; do
    wait "$xq_pid"
    xq_rc=$?
    kill -0 "$xq_pid" 2>/dev/null || break
done
# What the command has left behind in its group.
kill -s KILL -- "-$xq_pid" 2>/dev/null

case $xq_rc in
99 | 100 | 117 | 118 | 119 | 120) xq_rc=$xq_rc_unspeakable ;;
esac
exit "${xq_why:-$xq_rc}"
