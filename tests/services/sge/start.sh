#!/usr/bin/env bash
# Starts a Grid Engine of its own: a cell, a qmaster and an execd, all in one folder and on two ports of this machine.
#   start.sh FOLDER QMASTER_PORT EXECD_PORT [USER]     then: . FOLDER/env.sh
# As root the daemons can run jobs of any user, and USER may submit; as anybody else only that user's own. A second run with a
# folder that has a cell starts the daemons that are not running. The settings are Debian's where they are harsh (queue shell
# csh, posix_compliant), and else as impatient as tests: it schedules and accounts within a second.
#   SGE_TEST_SLOTS, SGE_TEST_NOTIFY_S, SGE_TEST_MAX_UNHEARD_S, SGE_TEST_LOGIN_SHELLS: read when the cell is made.
set -euo pipefail
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH
folder=$1 qmaster_port=$2 execd_port=$3
programs=/usr/lib/gridengine # those of /usr/bin are shell scripts around these, ten times slower
templates=/usr/share/gridengine

host=$(hostname)
admin=$(id -un)
[[ $EUID -ne 0 ]] || admin=sgeadmin
export SGE_ROOT=$folder/root SGE_CELL=default
export SGE_QMASTER_PORT=$qmaster_port SGE_EXECD_PORT=$execd_port
SGE_ARCH=$("$templates/util/arch")
export SGE_ARCH
common=$SGE_ROOT/$SGE_CELL/common

has_pid() { # FILE COMM: the process that FILE names runs, and is no other's of the same number
    local pid
    pid=$(cat "$1" 2>/dev/null) && [[ $pid && $(cat "/proc/$pid/comm" 2>/dev/null) == "$2" ]] && ! grep -q '^State:.*Z' "/proc/$pid/status"
}

until_so() { # SECONDS COMMAND...: returns when the command succeeds
    local tries=$(($1 * 20))
    shift
    for ((; tries > 0; tries--)); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.05
    done
    echo "tests/services/sge: not so in time: $*" >&2
    tail -n 5 "$folder"/run/daemons.log "$folder"/spool/qmaster/messages "$folder"/spool/execd/*/messages >&2 || true
    return 1
}

as_admin() {
    if [[ $EUID -eq 0 ]]; then setpriv --reuid "$admin" --regid "$admin" --clear-groups "$@"; else "$@"; fi
}

daemon() { # it goes into the background by itself
    (
        cd /
        exec setsid env -i PATH="$PATH" LC_ALL=C SGE_ROOT="$SGE_ROOT" SGE_CELL="$SGE_CELL" SGE_ARCH="$SGE_ARCH" \
            SGE_QMASTER_PORT="$qmaster_port" SGE_EXECD_PORT="$execd_port" \
            SGE_QMASTER_PIDFILE="$folder/run/qmaster.pid" SGE_EXECD_PIDFILE="$folder/run/execd.pid" \
            "$programs/$1" </dev/null >>"$folder/run/daemons.log" 2>&1
    )
}

make_cell() {
    mkdir -p "$common" "$folder"/spool/{qmaster/job_scripts,execd,db} "$folder/run" "$SGE_ROOT"/{lib/"$SGE_ARCH",bin,utilbin}
    chmod 755 "$folder"
    ln -s "$templates/util" "$templates/mpi" "$SGE_ROOT/"
    ln -s "$programs" "$SGE_ROOT/bin/$SGE_ARCH"
    ln -s "$programs" "$SGE_ROOT/utilbin/$SGE_ARCH"
    echo "$host" >"$common/act_qmaster"
    # The address 127.0.0.1 has several names; all of them are this host.
    {
        printf '%s localhost ip6-localhost' "$host"
        awk -v host="$host" '$1 ~ /^127\./ { for (n = 2; n <= NF && $n !~ /^#/; n++) if ($n != host && $n != "localhost") printf " %s", $n }' /etc/hosts
        echo
    } >"$common/host_aliases"
    cat >"$common/bootstrap" <<BOOTSTRAP
admin_user              $admin
default_domain          none
ignore_fqdn             true
spooling_method         berkeleydb
spooling_lib            libspoolb
spooling_params         $folder/spool/db
binary_path             $programs
qmaster_spool_dir       $folder/spool/qmaster
security_mode           none
listener_threads        2
worker_threads          2
scheduler_threads       1
BOOTSTRAP
    local accounting="accounting=true reporting=false flush_time=00:00:01 accounting_flush_time=00:00:00 joblog=false sharelog=00:00:00"
    sed -e "s|^execd_spool_dir .*|execd_spool_dir $folder/spool/execd|" \
        -e 's|^min_uid .*|min_uid 0|' -e 's|^min_gid .*|min_gid 0|' \
        -e 's|^load_report_time .*|load_report_time 00:00:01|' \
        -e "s|^max_unheard .*|max_unheard 00:00:${SGE_TEST_MAX_UNHEARD_S:-10}|" \
        -e "s|^login_shells .*|login_shells ${SGE_TEST_LOGIN_SHELLS:-sh,bash,ksh,csh,tcsh}|" \
        -e 's|^mailer .*|mailer /bin/true|' -e 's|^administrator_mail .*|administrator_mail none|' \
        -e "s|^reporting_params .*|reporting_params $accounting|" \
        "$templates/default-configuration" >"$folder/configuration"
    [[ $EUID -ne 0 ]] || chown -R "$admin:" "$folder/spool" "$folder/run" "$SGE_ROOT/$SGE_CELL"
    as_admin "$programs/spoolinit" berkeleydb libspoolb "$folder/spool/db" init
    as_admin "$programs/spooldefaults" configuration "$folder/configuration"
    as_admin "$programs/spooldefaults" complexes "$templates/util/resources/centry"
    as_admin "$programs/spooldefaults" usersets "$templates/util/resources/usersets"
    as_admin "$programs/spooldefaults" managers "$admin" root
}

make_queue() { # one host, one parallel environment, one queue
    local objects=$folder/objects
    mkdir -p "$objects"
    "$programs/qconf" -as "$host"
    cat >"$objects/host" <<HOST
hostname $host
load_scaling NONE
complex_values NONE
user_lists NONE
xuser_lists NONE
projects NONE
xprojects NONE
usage_scaling NONE
report_variables NONE
HOST
    "$programs/qconf" -Ae "$objects/host"
    printf 'group_name @allhosts\nhostlist %s\n' "$host" >"$objects/group"
    "$programs/qconf" -Ahgrp "$objects/group"
    sed 's/^slots .*/slots 999/' "$templates/util/resources/pe/smp" >"$objects/pe"
    "$programs/qconf" -Ap "$objects/pe"
    {
        printf '%s\n' "qname all.q" "hostlist @allhosts" "seq_no 0" "nsuspend 1" "suspend_interval 00:05:00" "priority 0" \
            "min_cpu_interval 00:05:00" "processors UNDEFINED" "qtype BATCH INTERACTIVE" "pe_list smp" "rerun FALSE" \
            "slots ${SGE_TEST_SLOTS:-32}" "tmpdir /tmp" "shell /bin/csh" "shell_start_mode posix_compliant" \
            "notify 00:00:${SGE_TEST_NOTIFY_S:-05}" "initial_state default"
        printf '%s NONE\n' load_thresholds suspend_thresholds ckpt_list prolog epilog starter_method suspend_method \
            resume_method terminate_method owner_list user_lists xuser_lists subordinate_list complex_values projects \
            xprojects calendar
        printf '%s INFINITY\n' {s,h}_{rt,cpu,fsize,data,stack,core,rss,vmem}
    } >"$objects/queue"
    "$programs/qconf" -Aq "$objects/queue"
    "$programs/qconf" -ssconf | sed -e 's|^schedule_interval .*|schedule_interval 0:0:1|' \
        -e 's|^flush_submit_sec .*|flush_submit_sec 1|' -e 's|^flush_finish_sec .*|flush_finish_sec 1|' \
        -e 's|^schedd_job_info .*|schedd_job_info true|' -e 's|^job_load_adjustments .*|job_load_adjustments NONE|' \
        -e 's|^load_adjustment_decay_time .*|load_adjustment_decay_time 0:0:0|' >"$objects/scheduling"
    "$programs/qconf" -Msconf "$objects/scheduling"
}

is_usable() { # the queue instance has no state such as `u`: its host does not answer
    "$programs/qstat" -f -q all.q | awk 'index($1, "all.q@") == 1 { usable = NF == 5 && $4 != "-NA-" } END { exit !usable }'
}

log=$folder/start.log
mkdir -p "$folder"
show_log() { [[ $? == 0 ]] || tail -n 20 "$log" >&2; }
trap show_log EXIT
if [[ ! -e $folder/has-cell ]]; then
    make_cell >>"$log" 2>&1
    touch "$folder/has-cell"
fi
has_pid "$folder/run/qmaster.pid" sge_qmaster || daemon sge_qmaster
until_so 20 has_pid "$folder/run/qmaster.pid" sge_qmaster
until_so 20 "$programs/qconf" -sh
if [[ ! -e $folder/has-queue ]]; then
    make_queue >>"$log" 2>&1
    touch "$folder/has-queue"
fi
has_pid "$folder/run/execd.pid" sge_execd || daemon sge_execd
until_so 20 has_pid "$folder/run/execd.pid" sge_execd
until_so 60 is_usable # 30 s where only the qmaster was started anew: execds look for it that often

printf 'export %s\n' "SGE_ROOT=$SGE_ROOT SGE_CELL=$SGE_CELL SGE_ARCH=$SGE_ARCH" \
    "SGE_QMASTER_PORT=$qmaster_port SGE_EXECD_PORT=$execd_port PATH=$programs:\$PATH" >"$folder/env.sh"
