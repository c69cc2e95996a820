#!/bin/bash -p
# Runs one attempt of one job and tells its end, with bash >= 4.2 and nothing else. `xqute.wrapper`
# renders it:
#
#   #@ name ... #@   the lines between are an example of what is put there
#   #? name ... #?   the lines between are kept only where that is needed
#
# Lines that only comment, and indentation, are dropped. The outer shell runs no line of a user's:
# the job, with its environment, its hooks and its command, has a subshell of its own, and whatever
# happens there ends as an exit code. Names that begin with `xq_` are the wrapper's; `cmd` and `rc`
# are for hooks to read, and `cmd` to replace.
#@ parameters
xq_dir=/tmp/job     # the job's folder, as seen from here
xq_tag=0            # what the claims of this attempt are named after
xq_spool=/tmp       # where to leave event names
xq_index=0          # the job's index
xq_attempt=0        # which attempt this is, from 0
xq_restart=0        # how often the backend itself restarted this attempt
xq_timeout_s=60     # seconds until TERM
xq_grace_s=10       # seconds between TERM and KILL
xq_native=''        # the backend's own id of this job
xq_restarts=1       # only where the backend may start an attempt again
xq_pid=0            # only where jobs have process ids of their own: nobody is to look for $$
xq_mount=/mnt/job   # the job's folder where that is a mount of a bucket; xq_dir is a local one then
xq_upload_s=10      # seconds between two uploads of the outputs
xq_run=0            # what xq_tag begins with, for the names of events
#@
#@ wrapper_init
#@

#? here
# Create $1 exclusively and say $2 in it. True: ours, even if the disk was too full for the words.
# shellcheck disable=SC2317,SC2329  # the one for mounts is the other
xq_claim() {
    xq_won=''
    set -C
    { xq_won=1; printf '%s\n' "$2"; } >"$1"
    set +C
    [[ $xq_won ]]
}
#?
#? mount
# In a mount of a bucket (gcsfuse and its like) a redirection shows an empty object first and each
# close of a descriptor uploads the whole file again; who was first is decided at the close, of
# which cp alone tells. So files are written in a local folder, and copied when they are whole.
xq_upload() {
    local name
    for name; do
        # Somebody else has written it meanwhile (ESTALE): once more.
        for _ in 1 2 3; do cp -- "$xq_dir/$name" "$xq_mount/$name" && break; done
    done
} 2>/dev/null

# Claim $1 with the words $2. What is there afterwards tells whose it is, whatever cp has said.
xq_claim() {
    local name=${1##*/} found=''
    printf '%s\n' "$2" >"$1"
    [[ -e $xq_mount/$name ]] && return 1
    cp -n -- "$1" "$xq_mount/$name"
    IFS= read -r found <"$xq_mount/$name"
    [[ $found == "$2" ]]
} 2>/dev/null

# Upload the outputs now and then, until told that it is over. The line that tells so is for waking
# up alone: `read` loses it when its time is over in that moment.
xq_live() {
    trap '' TERM INT HUP QUIT XCPU USR1 USR2
    local name
    while ! read -r -t "$xq_upload_s" -u 5 && [[ ! -e $xq_dir/.over && -e /proc/$$ ]]; do
        for name in job.stdout job.stderr; do
            if [[ -s $xq_dir/$name && $xq_dir/$name -nt $xq_dir/.$name ]]; then
                : >"$xq_dir/.$name"
                xq_upload "$name"
            fi
        done
    done
}
#?

#? spool
# Leave `<index>.<attempt>.<restart>.<status>.<rc>.<epoch ms>`: a name, there at once, no content.
xq_tell() {
    local now=${EPOCHREALTIME-}
    if [[ $now ]]; then now=${now//[!0-9]/}; else printf -v now '%(%s)T000000' -1; fi
#? here
    : >"$xq_spool/$xq_index.$xq_attempt.$xq_restart.$1.$2.${now%???}"
#?
#? mount
    : >"$xq_spool/$xq_index.$xq_attempt.$xq_restart.$1.$2.${now%???}.$xq_run"
#?
}
#?

# One byte over another: readers see one status or the other, never an empty file.
#? here
# shellcheck disable=SC2317,SC2329  # the one for mounts is the other
xq_status() { printf '%s' "$1" 1<>"$xq_dir/job.status"; }
#?
#? mount
xq_status() {
    printf '%s' "$1" >"$xq_dir/job.status"
    xq_upload job.status
}
#?

# The end, once: whoever creates the end claim writes job.rc and job.status.
xq_finish() {
    trap '' TERM INT HUP QUIT XCPU USR1 USR2
    local status=7
    [[ $xq_rc == 0 && -z $xq_cause ]] && status=6
#? mount
    : >"$xq_dir/.over"
    printf '\n' >&5
    wait "$xq_uploader"
    # Unless it was given up: a later attempt may have files of these names by now.
    [[ -e $xq_mount/job.end.$xq_tag ]] || xq_upload job.stdout job.stderr
#?
    if xq_claim "$xq_dir/job.end.$xq_tag$xq_first" "$xq_rc $status ${xq_cause:-${xq_term:+TERMINATED}}"; then
        printf '%s' "$xq_rc" >"$xq_dir/job.rc"
#? mount
        xq_upload job.rc
#?
        xq_status "$status"
#? spool
        xq_tell "$status" "$xq_rc"
#?
#? mount
    elif ! [[ -e $xq_mount/job.end.$xq_tag ]]; then
        # The bucket takes nothing: not even a success can be told.
        xq_rc=122
#?
    fi
#? mount
    rm -rf -- "$xq_dir"
#?
}

#? hooked
# What the job's shell has said of the command's end, by appending it to the start claim. Afterwards
# xq_rc is its exit code, or xq_untold says that there was none. (Nobody can say anything on a disk
# that was too full for the claim itself: then neither.)
xq_hear() {
    local what told
    xq_untold=''
    while IFS=' ' read -r what told; do
        if [[ $what == rc= ]]; then
            xq_rc=$told xq_untold=''
            return
        fi
        xq_untold=1
    done <"$xq_dir/job.start.$xq_tag"
}
#?

#? timeout
# Signal $1 to everything of this job: the group if it is ours (this shell included), else all below.
xq_signal() {
    trap '' TERM
    if [[ ${xq_stat[2]-} == "$$" ]]; then kill -s "$1" 0; else xq_signal_below "$$" "$1"; fi
    trap xq_term=1 TERM
}
xq_signal_below() {
    local pid children=''
    { IFS= read -r children <"/proc/$1/task/$1/children"; } 2>/dev/null
    while [[ $children == *[0-9]* ]]; do
        pid=${children%%[!0-9]*}
        children=${children#"$pid"}
        children=${children# }
        xq_signal_below "$pid" "$2"
        kill -s "$2" "$pid"
    done
}
#?

# The job, from its environment to its last hook. What bash itself would say of it ("Killed", ...)
# goes nowhere: job.stderr, here 3, is the command's. 122: the outputs cannot be opened; 125: the
# working directory cannot be entered.
xq_rc=122 xq_cause=SETUP
#? plain
# shellcheck disable=SC2034  # for who starts this script
xq_plain=1
#?
xq_attempt() {
    xq_rc=125
    xq_status 4
#? spool
    xq_tell 4 -1
#?
#? cwd
#@ cwd
    if cd /tmp 2>&3; then
#@
#?
    (
        if [[ $xq_term ]]; then exit 143; fi
#@ environment
export XQUTE_JOB_INDEX=0
#@
#? hooked
        # Whoever ends the job before its command runs does not want it to start.
        trap 'exit 143' TERM INT HUP QUIT XCPU
        xq_rc=''
        xq_end() {
            xq_ended=1
#@ jobcmd_end
            eval :
#@
        }
        # The job's shell ended before it was through: a hook or the prescript did `exit`, or so.
        # shellcheck disable=SC2317,SC2329  # reached through the trap
        xq_over() {
            rc=$?
            if [[ $xq_ended ]]; then return; fi
            # A command that never ran did not succeed.
            if [[ $xq_rc ]]; then rc=$xq_rc; elif ((rc == 0)); then rc=1; fi
            # In a shell of its own, which may exit as it likes.
            (xq_end)
            exit "$rc"
        }
        xq_ended=''
        trap xq_over EXIT
#@ jobcmd_init
        xq_whole='' ; eval 'xq_whole=1'; [[ $xq_whole ]] || exit 2
#@
#@ prescript
        xq_whole='' ; eval 'xq_whole=1'; [[ $xq_whole ]] || exit 2
#@
        # An exported variable of this name is the command's; it comes back below.
        xq_had=${cmd+x} xq_old=${cmd-}
#@ cmd
        cmd='true' xq_exec='\builtin exec -- ' xq_name='true'
#@
        xq_cmd=$cmd
#@ jobcmd_prep
        xq_whole='' ; eval 'xq_whole=1'; [[ $xq_whole ]] || exit 2
#@
        builtin set +emu +o pipefail
        if [[ $cmd != "$xq_cmd" ]] || builtin declare -F -- "$xq_name" &>/dev/null; then xq_exec=''; fi
        builtin trap : TERM INT HUP QUIT XCPU USR1 USR2
        xq_run() {
            xq_cmd=$cmd
            builtin unset -v cmd
            if [[ $xq_had ]]; then builtin export cmd="$xq_old"; fi
            builtin eval "$xq_exec$xq_cmd"
        }
        {
            (xq_run) 2>&"$xq_err" {xq_err}>&-
            xq_rc=$?
        } {xq_err}>&2 2>/dev/null
        # The prescript has closed stderr, or left no descriptor to be had.
        if [[ -z $xq_rc ]]; then
            (xq_run)
            xq_rc=$?
        fi
        exec {xq_err}>&-
        builtin printf 'rc= %s\n' "$xq_rc" >>"$xq_dir/job.start.$xq_tag"
        rc=$xq_rc
#@ postscript
        eval :
#@
        xq_end
        exit "$xq_rc"
#?
#? plain
#@ run
        # shellcheck disable=SC2317  # the block above is left out
        exec -- 'true'
#@
#?
    ) 2>&3 3>&- 5>&-
    xq_rc=$? xq_cause=''
#? hooked
    xq_hear
    if [[ $xq_untold ]] && ((xq_rc <= 128)); then
        xq_cause=NOT_STARTED
        # An `exec` of something else.
        if ((xq_rc == 0)); then xq_rc=1; fi
        printf 'xqute: the prescript or a hook ended this job before its command\n' >&3
    fi
#?
#? cwd
    fi
#?
} </dev/null >"$xq_dir/job.stdout" 3>"$xq_dir/job.stderr" 2>/dev/null

#? timeout
# The attempt in a shell of its own, which tells the waiting one; signals end neither.
xq_guard() {
    trap xq_term=1 TERM INT HUP QUIT XCPU
    trap : USR1 USR2
    xq_attempt
    printf '%s %s\n' "$xq_rc" "$xq_cause"
}
#?

xq_term='' xq_boot='' xq_line='' xq_untold='' xq_first='' xq_start=''
{
    # HOSTNAME may be inherited from another host.
    read -r xq_host </proc/sys/kernel/hostname || xq_host=$HOSTNAME
    read -r xq_boot </proc/sys/kernel/random/boot_id
    read -r xq_line <"/proc/$BASHPID/stat"
} 2>/dev/null
# shellcheck disable=SC2206  # numbers
xq_stat=(${xq_line##*) })
trap xq_term=1 TERM INT HUP QUIT XCPU
trap : USR1 USR2
#? pids
xq_pid=$BASHPID
#?
xq_who="${xq_host:--} ${xq_boot:--} $xq_pid ${xq_stat[19]:--} ${xq_native:--}"
#? restarts
# Whoever starts this script says for which attempt: by now it may be that of a later one.
if [[ $xq_restarts && ${1-$xq_tag} != "$xq_tag" ]]; then exit 121; fi
#?
#? mount
xq_dir=$(mktemp -d "${TMPDIR:-/tmp}/xqute.XXXXXXXX") || exit 122
#?
if ! xq_claim "$xq_dir/job.start.$xq_tag" "$xq_who"; then
#? here
    [[ -e $xq_dir/job.start.$xq_tag ]] || exit 122
#?
#? mount
    rm -rf -- "$xq_dir"
    [[ -e $xq_mount/job.start.$xq_tag ]] || exit 122
#?
#? restarts
    # Not started again, so this start is somebody else's; or the driver has revoked the attempt.
    if [[ ${xq_restart:-0} == 0 ]]; then exit 121; fi
    read -r xq_line <"$xq_dir/job.start.$xq_tag"
    if [[ -z $xq_line || $xq_line == revoked* ]]; then exit 121; fi
    xq_start=1
    until xq_claim "$xq_dir/job.start.$xq_tag.$xq_start" "$xq_who"; do
        [[ -e $xq_dir/job.start.$xq_tag.$xq_start ]] || exit 122
        xq_start=$((xq_start + 1))
    done
#?
#? once
    exit 121
#?
fi
# Somebody has given this attempt up meanwhile: what they wrote stands.
#? here
[[ -e $xq_dir/job.end.$xq_tag ]] && exit 121
#?
#? restarts
# Each start has an end of its own. Only the backend knows which was the last, whose end is the
# attempt's; the driver asks it.
if [[ $xq_start ]]; then xq_tag+=.$xq_start; else xq_first=.0; fi
#?
#? mount
[[ -e $xq_mount/job.end.$xq_tag ]] && exit 121
# A pipe with both its ends, so that reading from it waits without end.
exec 5<> <(:)
xq_live &
xq_uploader=$!
#?

#? timeout
#? here
exec 4< <(xq_guard)
#?
#? mount
exec 4< <(xq_guard 5>&-)
#?
IFS=' ' read -r -t "$xq_timeout_s" -u 4 xq_rc xq_cause
if (($? > 128)); then
    xq_signal TERM
    IFS=' ' read -r -t "$xq_grace_s" -u 4 xq_rc _
    xq_cause=TIMEOUT
fi
# No word of it: it outlives even the grace, or somebody killed the shell that would have told.
if [[ -z $xq_rc ]]; then
    xq_rc=137
#? hooked
    xq_hear
#?
    xq_finish
    xq_signal KILL
    exit "$xq_rc"
fi
#?
#? direct
xq_attempt
#?

xq_finish
exit "$xq_rc"
