"""What one container is to be, and how each program is told so. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .options import Runtime, Volume

__all__ = [
    "FORWARDER",
    "LABEL_HOST",
    "LABEL_KEEP",
    "LABEL_KEY",
    "LABEL_METADIR",
    "LABEL_TAG",
    "LABEL_WORKDIR",
    "Spec",
    "build_body",
    "build_exec_argv",
    "build_run_argv",
    "build_script_arguments",
]

LABEL_KEY: Final = "xqute.key"
#: Where the job's files are on the host, and what the claims of its attempt are named after.
LABEL_METADIR: Final = "xqute.metadir"
LABEL_TAG: Final = "xqute.tag"
#: The run's folder, and the host that it is a folder of.
LABEL_WORKDIR: Final = "xqute.workdir"
LABEL_HOST: Final = "xqute.host"
#: Of containers that are to stay.
LABEL_KEEP: Final = "xqute.keep"

_MIB: Final = 1024 * 1024

#: Bash code at the top of the wrapper. An engine signals one process, and an init passes that on
#: to one child; but a job is a group of processes: so the wrapper runs in a group of its own, and
#: this shell, the child of the init, signals the group. It also notes how many processes were
#: killed for want of memory, which not every engine tells, in ``job.oom`` of the job's folder.
FORWARDER: Final = """\
if [[ ${1-} != within ]]; then
set -m
"$BASH" -p "$0" within &
set +m
xq_job=$!
xq_oom=${0%/*}/job.oom
trap 'kill -s TERM -- "-$xq_job"' TERM INT HUP QUIT
[[ ! -e $xq_oom ]] || : >"$xq_oom"
while :; do
wait "$xq_job"
xq_rc=$?
kill -0 "$xq_job" 2>/dev/null || break
done
((xq_rc)) || exit 0
for xq_file in /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control; do
[[ -r $xq_file ]] || continue
while read -r xq_what xq_n; do
[[ $xq_what != oom_kill || $xq_n == 0 ]] || printf '%s' "$xq_n" >"$xq_oom"
done <"$xq_file"
done
exit "$xq_rc"
fi
set --"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One container.

    Attributes:
        key: Its name: the submission key of the attempt.
        labels: Its labels.
        image: What it is made of.
        entrypoint: What is run in it,
        arguments: and its arguments.
        volumes: What it sees of the host.
        working_dir: Where it runs.
        user: As whom; empty: as the image says.
        userns: The user namespace, in the engine's words; empty: its default.
        groups: Further groups of the user.
        cpus: How many processors it may use; None: all.
        memory_mib: How much memory, in MiB; None: all.
        gpus: How many graphics processors it is given.
    """

    key: str
    image: str
    entrypoint: tuple[str, ...]
    arguments: tuple[str, ...]
    labels: Mapping[str, str]
    volumes: tuple[Volume, ...] = ()
    working_dir: str = ""
    user: str = ""
    userns: str = ""
    groups: tuple[int, ...] = ()
    cpus: int | None = None
    memory_mib: int | None = None
    gpus: int = 0


def build_script_arguments(entrypoint: Sequence[str], script: str) -> tuple[str, ...]:
    """Give what follows the entrypoint: bash is to take no code from the environment."""
    is_bash = posixpath.basename(entrypoint[-1]) == "bash"
    return ("-p", script) if is_bash else (script,)


def build_body(spec: Spec) -> dict[str, Any]:
    """Give the body of a request to create the container (Docker Engine API, 1.40 and later)."""
    host: dict[str, Any] = {
        "Init": True,
        "Mounts": [
            {
                "Type": "bind",
                "Source": volume.source,
                "Target": volume.target,
                "ReadOnly": volume.read_only,
            }
            for volume in spec.volumes
        ],
    }
    if spec.userns:
        host["UsernsMode"] = spec.userns
    if spec.groups:
        host["GroupAdd"] = [str(group) for group in spec.groups]
    if spec.cpus is not None:
        host["NanoCpus"] = spec.cpus * 1_000_000_000
    if spec.memory_mib is not None:
        # The same with swap: what is asked for is all there is.
        host["Memory"] = host["MemorySwap"] = spec.memory_mib * _MIB
    if spec.gpus:
        host["DeviceRequests"] = [{"Count": spec.gpus, "Capabilities": [["gpu"]]}]
    return {
        "Image": spec.image,
        "Entrypoint": list(spec.entrypoint),
        "Cmd": list(spec.arguments),
        "User": spec.user,
        "WorkingDir": spec.working_dir,
        "Labels": dict(spec.labels),
        "HostConfig": host,
    }


def build_run_argv(
    binary: str, runtime: Runtime, spec: Spec, bin_args: Sequence[str], how: Sequence[str]
) -> list[str]:
    """Give the command line that makes and starts the container.

    Args:
        binary: Docker, Podman, or something like them.
        runtime: Which of these.
        spec: The container.
        bin_args: The user's own options.
        how: What becomes of it: ``--rm``, or ``--detach``.
    """
    argv = [binary, "run", *how, "--init", "--pull=never", f"--name={spec.key}"]
    argv += [f"--label={name}={value}" for name, value in spec.labels.items()]
    argv += [f"--mount={_build_mount(volume, 'target', 'readonly')}" for volume in spec.volumes]
    if spec.user:
        argv.append(f"--user={spec.user}")
    if spec.userns:
        argv.append(f"--userns={spec.userns}")
    argv += [f"--group-add={group}" for group in spec.groups]
    if spec.cpus is not None:
        argv.append(f"--cpus={spec.cpus}")
    if spec.memory_mib is not None:
        argv += [f"--memory={spec.memory_mib}m", f"--memory-swap={spec.memory_mib}m"]
    if spec.gpus and runtime is Runtime.PODMAN:
        argv += [f"--device=nvidia.com/gpu={number}" for number in range(spec.gpus)]
    elif spec.gpus:
        argv.append(f"--gpus={spec.gpus}")
    # The image's own entrypoint is not wanted; ours is the command.
    argv += [f"--workdir={spec.working_dir}", "--entrypoint=", *bin_args]
    return [*argv, spec.image, *spec.entrypoint, *spec.arguments]


def build_exec_argv(binary: str, spec: Spec, bin_args: Sequence[str]) -> list[str]:
    """Give the command line of Apptainer or Singularity.

    Nothing of the host is seen but what is asked for, its temporary folders and its network. With
    process ids of its own, nothing that a job starts outlives it.
    """
    argv = [binary, "exec", "--pid", "--cleanenv", "--no-home", "--writable-tmpfs"]
    argv += [f"--mount={_build_mount(volume, 'destination', 'ro')}" for volume in spec.volumes]
    if spec.gpus:
        argv.append("--nv")
    argv += [f"--pwd={spec.working_dir}", *bin_args]
    return [*argv, spec.image, *spec.entrypoint, *spec.arguments]


def _build_mount(volume: Volume, target: str, read_only: str) -> str:
    """Give a mount as these programs read it: fields of comma-separated values."""
    fields = ["type=bind", f"source={volume.source}", f"{target}={volume.target}"]
    if volume.read_only:
        fields.append(read_only)
    return ",".join(map(_quote_field, fields))


def _quote_field(field: str) -> str:
    if '"' in field or "," in field:
        return '"' + field.replace('"', '""') + '"'
    return field
