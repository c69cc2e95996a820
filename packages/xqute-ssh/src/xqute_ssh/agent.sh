#!/bin/bash
# The far end of one connection: starts jobs, ends them, and tells what becomes of them. It needs bash >= 4.2, `setsid` and
# `mkdir`; `dd`, `mv`, `chmod` and `rm` where files are brought and fetched.
#
# Commands come on stdin: eight digits, a length, and so many bytes of code, a call of a function below; if it begins with
# `>LANE `, the shell of that lane runs it, which is started when it is first needed. Events leave on stdout, one line in one write, so that the shells that write them need no lock: `@<length> <kind> <number> <words>`. A line
# is at most 512 bytes, and nothing else is ever written there. The number is the caller's, of a job or a question.
#
# Each job is started by the shell of a lane, which waits for it; the caller sends it no other before it has told that end. It
# holds this connection's stdout, the job does not: a job has its own session and no stream of ours, and outlives all of this. What is true of a job is in its claims (`job.start.<tag>`,
# `job.end.<tag>`); a shell's word is only sooner.

# shellcheck disable=SC2317,SC2329  # what is called, comes on stdin

xq_lc_all=${LC_ALL-}
LC_ALL=C
IFS=$' \t\n'
xq_umask=$(umask)
umask 077
shopt -s extglob nullglob
exec 2>/dev/null

xq_say() { printf '@%d %s\n' "${#1}" "$1"; }

# Say that what was asked for with number $1 cannot be done, and why: what the command in $2... says when it is tried again.
xq_refuse() {
    local number=$1 why
    shift
    why=$("$@" 2>&1 >/dev/null)
    why=${why//[^ -~]/ }
    why=${why#bash: }
    why=${why#environment: }
    why=${why#line +([0-9]): }
    xq_say "failed $number ${why:0:400}"
}

# --- processes -------------------------------------------------------------------------------------------------------------

# /proc/$1/stat from its third field on, as xq_stat: state, parent, group, session, ..., [19] start time. False: no such.
xq_read_stat() {
    local line=''
    IFS= read -r -d '' line <"/proc/$1/stat"
    [[ $line ]] || return 1
    # shellcheck disable=SC2206  # numbers
    xq_stat=(${line##*) })
}

# Whether process $1, which began at $2 clock ticks ("-": not known), is alive.
xq_is_alive() {
    if [[ ! -e /proc/self/stat ]]; then kill -0 "$1"; return; fi
    xq_read_stat "$1" && [[ ${xq_stat[0]} != [ZX] && ($2 == - || ${xq_stat[19]} == "$2") ]]
}

# Whether process $1, which began at $2, runs a script of folder $3. Where it is not known when it began, its words must say so:
# numbers are used again.
xq_is_job() {
    local word
    xq_is_alive "$1" "$2" || return 1
    [[ $2 == - && -e /proc/self/stat ]] || return 0
    while IFS= read -r -d '' word; do
        [[ $word != "$3"/job.wrapped.* ]] || return 0
    done <"/proc/$1/cmdline"
    return 1
}

# KILL every process of the sessions $@, until a look finds none.
xq_end_sessions() {
    local file round found sessions=" $* "
    for round in 1 2 3 4 5 6 7 8 9 10; do
        found=''
        for file in /proc/[0-9]*/stat; do
            file=${file#/proc/}
            file=${file%/stat}
            xq_read_stat "$file" || continue
            if [[ $sessions == *" ${xq_stat[3]} "* && ${xq_stat[0]} != [ZX] ]]; then
                kill -KILL "$file"
                found=$round
            fi
        done
        [[ $found ]] || return
    done
}

# What is true of the attempt $2 in folder $1, whose process is or was $3, begun at $4: xq_found is `ended RC`,
# `running PID TICKS`, `gone`, `rebooted`, `revoked`, or `absent`.
xq_look() {
    local end='' start='' pid ticks boot round
    for round in 1 2; do
        IFS= read -r end <"$1/job.end.$2"
        if [[ $end ]]; then
            xq_found="ended ${end%% *}"
            return
        fi
        # The second look: an end that came between the first and the end of the process.
        [[ $round == 2 ]] && return
        pid=$3 ticks=$4 boot=$xq_boot
        xq_found=absent
        IFS= read -r start <"$1/job.start.$2"
        if [[ ! $start && -e $1/job.start.$2 ]]; then
            # Its line is about to be written; or the disk is full, and it never will be.
            read -r -t 0.05 <> <(:)
            IFS= read -r start <"$1/job.start.$2"
        fi
        if [[ $start == revoked* ]]; then
            xq_found=revoked
            return
        elif [[ $start ]]; then
            read -r _ boot pid ticks _ <<<"$start"
            xq_found=gone
        elif [[ -e $1/job.start.$2 ]]; then
            xq_found=gone
        fi
        if [[ $boot != "$xq_boot" && $boot != - && $xq_boot != - ]]; then
            xq_found=rebooted
        elif [[ $pid != - ]] && xq_is_job "$pid" "$ticks" "$1"; then
            xq_found="running $pid $ticks"
            return
        elif [[ $3 != - && $3 != "$pid" ]] && xq_is_job "$3" "$4" "$1"; then
            xq_found="running $3 $4"
            return
        fi
    done
}

# --- jobs ------------------------------------------------------------------------------------------------------------------

# Make way for attempt TAG of a job, where files are not shared. Not for a lane: once another agent is in charge, none of these
# is under way any more, and what the attempt itself has written since is not taken for what an earlier one has left.
xq_clear() { # DIR TAG
    if [[ -e $1/job.status && ! -e $1/job.start.$2 ]]; then rm -f -- "$1"/job.{status,rc,stdout,stderr}; fi
}

# Start attempt TAG of a job. With TEXT, its script is written first, and its files are told with its end. Where it was started
# before, and that was not heard, nothing of that is done, and nothing can be refused: its script is being read.
xq_start() { # NUMBER DIR TAG SCRIPT [TEXT]
    local number=$1 dir=$2 tag=$3 script=$4
    if [[ -e $dir/job.start.$tag ]]; then
        :
    elif [[ $# -gt 4 ]]; then
        [[ -d $dir ]] || mkdir -p -- "$dir" || { xq_refuse "$number" mkdir -p -- "$dir"; return; }
        if [[ $5 ]]; then
            xq_write "$script" "$5" || { xq_refuse "$number" xq_write "$script" "$5"; return; }
        fi
    elif [[ ! -r $script ]]; then
        xq_say "failed $number $script is not to be seen here"
        return
    fi
    xq_run "$@"
}
xq_write() { printf '%s' "$2" >"$1"; }

xq_run() { # as xq_start
    local number=$1 dir=$2 tag=$3 script=$4 staged=${5+1} pid rc owner=''
    if [[ ! -e $dir/job.start.$tag ]]; then
        {
            trap - PIPE
            umask "$xq_umask"
            if [[ $xq_lc_all ]]; then LC_ALL=$xq_lc_all; else unset LC_ALL; fi
            [[ ! $staged ]] || cd -- "$dir" || exit 125
            exec setsid "$BASH" -p "$script"
        } </dev/null >/dev/null &
        pid=$!
        xq_stat=()
        xq_read_stat "$pid"
        xq_say "started $number $pid ${xq_stat[19]:--}"
        wait "$pid"
        rc=$?
        # The wrapper says 121 if it is not to run; so may a command, but then the claim is its wrapper's.
        if [[ $rc == 121 ]]; then read -r _ _ owner _ <"$dir/job.start.$tag"; fi
        if [[ $rc != 121 || $owner == "$pid" ]]; then
            # What it left running. Its number cannot be another's while a member of its group lives.
            [[ -e /proc/$pid ]] || kill -KILL -- "-$pid"
            xq_tell_end "$number" "$dir" "$tag" "$staged" ended "$rc"
            return
        fi
    fi
    # It was started before, or never will be: somebody else has its start claim.
    xq_look "$dir" "$tag" - -
    if [[ $xq_found == running* ]]; then xq_say "started $number ${xq_found#* }"; else xq_say "started $number - -"; fi
    xq_attend "$number" "$dir" "$tag" - - "$staged"
}

# Tell the end of jobs that an earlier connection started: NUMBER DIR TAG PID TICKS STAGED, for each.
xq_adopt() { { xq_close_lanes; xq_attend "$@"; } </dev/null & }

xq_attend() {
    local left never
    exec {never}<> <(:)
    while [[ $# -gt 0 ]]; do
        left=()
        while [[ $# -gt 0 ]]; do
            xq_look "$2" "$3" "$4" "$5"
            case $xq_found in
                running*) left+=("$1" "$2" "$3" "$4" "$5" "$6") ;;
                ended*)
                    # The claim comes a moment before the process ends.
                    if [[ $4 != - ]] && xq_is_alive "$4" "$5"; then read -r -t 0.05 -u "$never"; fi
                    [[ $4 == - || -e /proc/$4 ]] || kill -KILL -- "-$4"
                    xq_tell_end "$1" "$2" "$3" "$6" ended "${xq_found#* }"
                    ;;
                *) xq_tell_end "$1" "$2" "$3" "$6" "$xq_found" ;;
            esac
            shift 6
        done
        set -- "${left[@]}"
        # Nobody listens any more.
        kill -0 $$ || exit
        [[ $# == 0 ]] || read -r -t 0.1 -u "$never"
    done
    exec {never}>&-
}

# The end of a job, KIND and WORDS; where files are not shared, what is in them first. Each line names the shell that says it:
# two may tell the same end, when one of them was thought to be dead.
xq_tell_end() { # NUMBER DIR TAG STAGED KIND [WORDS]
    if [[ $4 ]]; then
        xq_send "$1" start "$2/job.start.$3" 16
        xq_send "$1" end "$2/job.end.$3" 16
        xq_send "$1" stdout "$2/job.stdout" 16
        xq_send "$1" stderr "$2/job.stderr" 16
    fi
    xq_say "$5 $1 $BASHPID${6:+ $6}"
}

# Tell what is true of attempts: DIR TAG PID TICKS for each.
xq_check() {
    local number=$1 nth=0
    shift
    while [[ $# -gt 0 ]]; do
        xq_look "$1" "$2" "$3" "$4"
        xq_say "state $number $nth $xq_found"
        nth=$((nth + 1))
        shift 4
    done
    xq_say "done $number"
}

# Send a signal to the groups of jobs, PID TICKS for each; with KILL, to all of their sessions.
xq_kill() { # NUMBER SIGNAL PID TICKS ...
    local number=$1 signal=$2 sessions=()
    shift 2
    while [[ $# -gt 0 ]]; do
        if xq_is_alive "$1" "$2"; then
            kill "-$signal" -- "-$1"
            sessions+=("$1")
        fi
        shift 2
    done
    if [[ $signal == KILL && ${#sessions[@]} -gt 0 ]]; then xq_end_sessions "${sessions[@]}"; fi
    xq_say "done $number"
}

# End what is left of sessions whose leaders, PID each, have ended.
xq_sweep() {
    local number=$1 pid sessions=()
    shift
    for pid; do [[ -e /proc/$pid ]] || sessions+=("$pid"); done
    [[ ${#sessions[@]} == 0 ]] || xq_end_sessions "${sessions[@]}"
    xq_say "done $number"
}

# See that attempts that have not started never do: DIR TAG for each. One may be revoked already: that was not heard.
xq_revoke() {
    local number=$1
    shift
    while [[ $# -gt 0 ]]; do
        if [[ ! -d $1 ]] && ! mkdir -p -- "$1" || ! (set -C; printf 'revoked driver\n' >"$1/job.start.$2"); then
            xq_look "$1" "$2" - -
            if [[ $xq_found != revoked ]]; then
                xq_say "failed $number $1: it cannot be revoked"
                return
            fi
        fi
        shift 2
    done
    xq_say "done $number"
}

# --- files -----------------------------------------------------------------------------------------------------------------

# Say what is in stdin: `data NUMBER SENDER NAME TEXT`, where \\ \n \0 stand for a backslash, a newline and a NUL; at most $3 pieces
# (0: all). Afterwards xq_more says whether there is more.
xq_encode() {
    local text rc pieces=0
    xq_more=''
    while :; do
        if ((pieces && pieces == $3)); then
            # shellcheck disable=SC2034  # for the caller
            xq_more=1
            return
        fi
        IFS= read -r -d '' -n 220 text
        rc=$?
        local length=${#text}
        text=${text//\\/\\\\}
        text=${text//$'\n'/\\n}
        if ((rc == 0 && length < 220)); then text+='\0'; fi
        [[ ! $text ]] || xq_say "data $1 $BASHPID $2 $text"
        ((rc == 0)) || return 0
        pieces=$((pieces + 1))
    done
}

xq_send() { # NUMBER NAME PATH PIECES
    if [[ ! -e $3 ]]; then
        xq_say "file $1 $BASHPID $2 none"
        return
    fi
    xq_encode "$1" "$2" "$4" <"$3"
    xq_say "file $1 $BASHPID $2 ${xq_more:+more}"
}

# Send a file from OFFSET on, in the background.
xq_get() { { xq_close_lanes; xq_get_file "$@"; } & }
xq_get_file() { # NUMBER PATH OFFSET
    xq_open "$2" || { xq_refuse "$1" xq_open "$2"; return; }
    {
        (($3 == 0)) || dd bs=1 count=0 skip="$3"
        xq_encode "$1" - 0
    } <"$2"
    xq_say "done $1"
}
xq_open() { { [[ ! -d $1 ]] || { printf '%s: is a folder\n' "$1" >&2; false; }; } && : <"$1"; }

# Append what the printf format $3 stands for to a file; with 0 as OFFSET, begin it anew.
xq_put() { # NUMBER PATH OFFSET FORMAT
    xq_append "$2" "$3" "$4" || { xq_refuse "$1" xq_append "$2" "$3" "$4"; return; }
    xq_say "done $1"
}
xq_append() {
    # shellcheck disable=SC2059  # it is a format
    if (($2 == 0)); then printf -- "$3" >"$1"; else printf -- "$3" >>"$1"; fi
}

# Run a command of this machine, and say how that went.
xq_do() { # NUMBER COMMAND ...
    local number=$1
    shift
    if "$@" </dev/null >/dev/null; then xq_say "done $number"; else xq_refuse "$number" "$@"; fi
}

# Name the files under $2, and their modes are nobody's business here: `data` of NUL-ended names, relative to it.
xq_list() { # NUMBER FOLDER
    {
        xq_close_lanes
        shopt -s globstar dotglob
        cd -- "$2" || { xq_refuse "$1" cd -- "$2"; exit; }
        for name in **; do [[ ! -f $name ]] || printf '%s\0' "$name"; done > >(xq_encode "$1" - 0; xq_say "done $1")
    } &
}

# --- the connection --------------------------------------------------------------------------------------------------------

# Take over from an earlier agent of this workdir, and greet. FILE says who is in charge here; PROBE is there if the workdir
# is the driver's own.
xq_setup() { # NUMBER EPOCH FILE DIR PROBE
    local epoch='' pid='' ticks='' boot='' now=${EPOCHREALTIME-} host='' shared=no
    xq_epoch=$2 xq_file=$3
    xq_boot=-
    read -r xq_boot </proc/sys/kernel/random/boot_id
    read -r host </proc/sys/kernel/hostname || host=$HOSTNAME
    if ! type -P setsid; then
        xq_say "failed $1 there is no setsid (of util-linux)"
        return
    fi >/dev/null
    [[ ! -e $5 ]] || shared=yes
    if [[ $shared == no && ! $6 ]]; then
        xq_say "unshared $1"
        return
    fi
    [[ -d $4 ]] || mkdir -p -- "$4" || { xq_refuse "$1" mkdir -p -- "$4"; return; }
    read -r epoch pid ticks boot <"$3"
    if [[ $pid && $boot == "$xq_boot" ]] && xq_is_alive "$pid" "$ticks"; then kill -KILL "$pid"; fi
    xq_stat=()
    xq_read_stat "$$"
    xq_write "$3" "$2 $$ ${xq_stat[19]:--} $xq_boot" || { xq_refuse "$1" xq_write "$3" "$2"; return; }
    if [[ $now ]]; then now=${now//[!0-9]/}; else printf -v now '%(%s)T000000' -1; fi
    xq_say "hello $1 $host $xq_boot ${now%???} $shared $(xq_kills_at_logout) $(xq_describe)"
}

# What there is for jobs: processor cores, memory in MiB, ids of graphics processors; "-": not known, or none.
xq_describe() {
    local name value cpus=0 memory=- limit='' part gpus=${CUDA_VISIBLE_DEVICES-} parts
    while IFS=$':\t ' read -r name value; do
        if [[ $name == Cpus_allowed_list ]]; then
            IFS=, read -r -a parts <<<"$value"
            for part in "${parts[@]}"; do cpus=$((cpus + ${part#*-} - ${part%-*} + 1)); done
        fi
    done <"/proc/$$/status"
    while IFS=$': ' read -r name value _; do
        if [[ $name == MemTotal ]]; then memory=$((value / 1024)); fi
    done </proc/meminfo
    read -r limit </sys/fs/cgroup/memory.max
    if [[ $limit == +([0-9]) ]] && ((limit / 1048576 < memory)); then memory=$((limit / 1048576)); fi
    if [[ ! ${CUDA_VISIBLE_DEVICES+x} ]]; then
        for name in /dev/nvidia+([0-9]); do gpus+=${gpus:+,}${name#/dev/nvidia}; done
    fi
    if [[ ! $gpus || $gpus == -1 ]]; then gpus=-; fi
    printf '%s %s %s' "$cpus" "$memory" "${gpus//[[:space:]]/}"
}

# Whether logind kills what a user leaves running: yes or no.
xq_kills_at_logout() {
    local file name value kills=no excluded=root only='' user=${USER:-${LOGNAME:-}}
    for file in /usr/lib/systemd/logind.conf /etc/systemd/logind.conf {/usr/lib,/run,/etc}/systemd/logind.conf.d/*.conf; do
        while IFS='=' read -r name value; do
            case $name in
                KillUserProcesses) kills=${value,,} ;;
                KillExcludeUsers) excluded=$value ;;
                KillOnlyUsers) only=$value ;;
            esac
        done <"$file"
    done
    if [[ ! -d /run/systemd/sessions || -e /var/lib/systemd/linger/$user || " $excluded " == *" $user "* ]] ||
        [[ $only && " $only " != *" $user "* ]]; then
        kills=no
    fi
    case $kills in yes | true | on | 1) printf yes ;; *) printf no ;; esac
}

# Whether no later agent has taken over; a workdir that was removed has none.
xq_in_charge() {
    local epoch=''
    [[ $xq_epoch ]] || return 0
    read -r epoch _ <"$xq_file"
    [[ ! $epoch || $epoch == "$xq_epoch" ]]
}

xq_serve() {
    local length code
    while IFS= read -r -N 8 length && IFS= read -r -N "$((10#$length))" code; do
        if [[ $code == '>'* ]]; then
            code=${code:1}
            xq_pass "${code%% *}" "${code#* }"
        else
            xq_in_charge || exit
            eval "$code"
        fi
    done
}

# Have the shell of lane $1 run $2.
xq_pass() {
    local lane
    if [[ ! ${xq_lanes[$1]-} ]] || ! xq_hand_over "${xq_lanes[$1]}" "$2"; then
        exec {lane}> >(xq_close_lanes; xq_serve)
        xq_lanes[$1]=$lane
        xq_hand_over "$lane" "$2"
    fi
}
xq_hand_over() { printf '%08d%s' "${#2}" "$2" >&"$1"; }

# For shells beside this one: they, and jobs, hold no end of a pipe to another.
xq_close_lanes() {
    local lane
    for lane in "${xq_lanes[@]}"; do exec {lane}>&-; done
    xq_lanes=()
}

xq_lanes=()
xq_epoch=''
trap '' PIPE
xq_serve
