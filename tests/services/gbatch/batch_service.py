"""A Google Cloud Batch service on loopback that runs jobs: the SDK's own client speaks to it.

    batch_service.py FOLDER --gcs=URL [--vms=N] [--provision=S] [--term-grace=S] [--stat-ttl=S]

In FOLDER it makes what a client needs: `roots.pem` (for GRPC_DEFAULT_SSL_ROOTS_FILE_PATH) and
`key.json` (of a service account); and `control`, a socket for tests. Then it says in one line
{"endpoint": ...}. It ends, with all that it runs, when its standard input is closed.

Each task of a job gets a "VM": a mount namespace of its own in which the job's buckets are mounted
by bucket_mount.py. Containers are not isolated: entrypoint and commands run as they are. A job that
is cancelled or deleted gets TERM and, --term-grace seconds later, KILL, as on a VM that is shut
down.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import grpc
from google.cloud.batch_v1.types import batch
from google.cloud.batch_v1.types import job as job_types
from google.cloud.batch_v1.types import task as task_types
from google.longrunning import operations_pb2
from google.protobuf import any_pb2, empty_pb2, timestamp_pb2

HERE = Path(__file__).resolve().parent
State = job_types.JobStatus.State
Code = grpc.StatusCode
TaskState = task_types.TaskStatus.State
ENDED = (State.SUCCEEDED, State.FAILED, State.CANCELLED)
#: Of gcsfuse's options, those that bucket_mount.py has, and those that it alone has.
MOUNT_OPTIONS = ("--implicit-dirs", "--stat-ttl", "--write-back")
JOB_ID = r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?"


# --- filters -------------------------------------------------------------------------------------


class Filter:
    """`labels.k="v" AND (status.state="A" OR status.state="B")`; OR binds tighter than AND."""

    _TOKEN = re.compile(r'\s*(\(|\)|AND\b|OR\b|[\w.-]+|!=|=|"[^"]*")')

    def __init__(self, text):
        self._tokens, rest = [], text
        while rest.strip():
            match = self._TOKEN.match(rest)
            if not match:
                raise ValueError(f"invalid filter at {rest!r}")
            self._tokens.append(match[1])
            rest = rest[match.end() :]
        self._test = self._and() if self._tokens else lambda job: True
        if self._tokens:
            raise ValueError(f"invalid filter at {self._tokens[0]!r}")

    def matches(self, job):
        return self._test(job)

    def _and(self):
        tests = [self._or()]
        while self._tokens and self._tokens[0] == "AND":
            self._tokens.pop(0)
            tests.append(self._or())
        return lambda job: all(test(job) for test in tests)

    def _or(self):
        tests = [self._term()]
        while self._tokens and self._tokens[0] == "OR":
            self._tokens.pop(0)
            tests.append(self._term())
        return lambda job: any(test(job) for test in tests)

    def _term(self):
        if len(self._tokens) < 3:
            raise ValueError("invalid filter: it ends too early")
        field = self._tokens.pop(0)
        if field == "(":
            test = self._and()
            if not self._tokens or self._tokens.pop(0) != ")":
                raise ValueError("invalid filter: no closing parenthesis")
            return test
        operator, value = self._tokens.pop(0), self._tokens.pop(0).strip('"')
        if operator not in ("=", "!="):
            raise ValueError(f"invalid operator {operator!r}")
        return lambda job: (self._value(job, field) == value) == (operator == "=")

    @staticmethod
    def _value(job, field):
        if field.startswith("labels."):
            return job.labels.get(field.removeprefix("labels."))
        if field == "status.state":
            return State(job.status.state).name
        if field == "name":
            return job.name
        raise ValueError(f"invalid field {field!r}")


# --- VMs -----------------------------------------------------------------------------------------


class Machine:
    """Where one task runs; everything on it carries its name in the environment."""

    def __init__(self, job, place, options):
        self.name = f"vm-{uuid.uuid4().hex}"
        self._job = job
        self._place = place
        self._options = options
        self._folder = options.folder / "vms" / self.name
        self._process = None
        self._is_ending = False

    def _script(self):
        spec = self._job.task_groups[0].task_spec
        # The shell outlives a TERM, which its children get with their own handlers.
        lines = ["trap : TERM", "mount -t tmpfs tmpfs /mnt"]
        undo = []
        for number, volume in enumerate(spec.volumes):
            path = shlex.quote(volume.mount_path)
            program = [sys.executable, str(HERE / "bucket_mount.py"), self._options.gcs]
            options = [
                option for option in volume.mount_options if option.startswith(MOUNT_OPTIONS)
            ]
            command = shlex.join(
                [
                    *program,
                    volume.gcs.remote_path,
                    volume.mount_path,
                    f"--stat-ttl={self._options.stat_ttl}",
                    *options,
                ]
            )
            fd = 10 + number
            lines += [
                f"mkdir -p {path}",
                f"exec {fd}< <(exec setsid {command})",
                f"read -r -t 60 -u {fd} || exit 125",
            ]
            if any(option.startswith("--write-back") for option in options):
                undo.append(f"umount {path}; read -r -u {fd}")  # it ends when all is written
            else:
                undo.append(f"umount -l {path}")  # what was closed is written
        runs = []
        for runnable in spec.runnables:
            if "container" in runnable:
                container = runnable.container
                command = shlex.join([*shlex.split(container.entrypoint), *container.commands])
            else:
                command = runnable.script.text or f"bash {shlex.quote(runnable.script.path)}"
            fds = " ".join(f"{10 + number}<&-" for number in range(len(spec.volumes)))
            command = f"bash -c {shlex.quote(command)} {fds}"
            runs.append(f"{command} &" if runnable.background else f"{command} || rc=$?")
            if not runnable.always_run and not runnable.background:
                runs.append("[[ $rc == 0 ]] || break")
        return "\n".join([*lines, "rc=0", "while :; do", *runs, "break", "done", *undo, "exit $rc"])

    async def run(self):
        """The exit code."""
        spec = self._job.task_groups[0].task_spec
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": "/root",
            "TMPDIR": str(self._folder),
            "FAKE_BATCH_VM": self.name,
            "BATCH_TASK_INDEX": str(self._place),
            "BATCH_TASK_COUNT": str(max(1, self._job.task_groups[0].task_count)),
            "BATCH_TASK_RETRY_ATTEMPT": "0",
            "BATCH_JOB_UID": self._job.uid,
            **dict(spec.environment.variables),
        }
        self._folder.mkdir(parents=True)
        log = self._options.folder / "logs" / f"{self._job.name.rpartition('/')[2]}.{self._place}"
        with log.open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                *("unshare", "--mount", "--propagation", "private", "bash", "-c", self._script()),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if self._is_ending:  # meanwhile
            self.destroy()
        try:
            return await self._process.wait()
        finally:
            self.destroy()

    async def shut_down(self):
        """TERM, and KILL for what stays."""
        is_first, self._is_ending = not self._is_ending, True
        if self._process is None or self._process.returncode is not None or not is_first:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), self._options.term_grace)
        except TimeoutError:
            self.destroy()
            await self._process.wait()

    def destroy(self):
        """KILL everything that is on it."""
        needle = f"FAKE_BATCH_VM={self.name}".encode()
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if needle in Path(f"/proc/{pid}/environ").read_bytes():
                    os.kill(int(pid), signal.SIGKILL)
            except OSError:
                continue  # it has ended meanwhile
        shutil.rmtree(self._folder, ignore_errors=True)


# --- the service ---------------------------------------------------------------------------------


class Fault:
    """What goes wrong with some calls of one kind."""

    def __init__(self, code, message="", when="before", times=1):
        self.code, self.message = Code[code], message or f"injected {code}"
        self.is_late = when == "after"
        self.times = times


class BatchService:
    def __init__(self, options):
        self._options = options
        self.reset()
        self._work = set()
        self.set_vms(None)

    def reset(self):
        self.jobs, self.requests, self.operations = {}, {}, {}
        #: By the names of jobs: their tasks, and the machines of those, in order.
        self.tasks, self.machines = {}, {}
        self.calls = collections.Counter()
        self.faults = collections.defaultdict(list)
        self.delays = {}

    def set_vms(self, n):
        """Let so many jobs run at once; None: as many as the options say."""
        self._vms = asyncio.Semaphore(n or self._options.vms)

    def handlers(self):
        def rpc(method, request_class, serialize):
            async def handle(request, context):
                name = method.__name__
                self.calls[name] += 1
                await asyncio.sleep(self.delays.get(name, 0))
                fault = self.faults[name][0] if self.faults[name] else None
                if fault is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        self.faults[name].pop(0)
                    if not fault.is_late:
                        await context.abort(fault.code, fault.message)
                answer = await method(request, context)
                if fault is not None:
                    await context.abort(fault.code, fault.message)
                return answer

            return grpc.unary_unary_rpc_method_handler(
                handle,
                request_deserializer=request_class.deserialize,
                response_serializer=serialize,
            )

        operation = operations_pb2.Operation.SerializeToString
        methods = {
            "CreateJob": rpc(self.CreateJob, batch.CreateJobRequest, job_types.Job.serialize),
            "GetJob": rpc(self.GetJob, batch.GetJobRequest, job_types.Job.serialize),
            "DeleteJob": rpc(self.DeleteJob, batch.DeleteJobRequest, operation),
            "CancelJob": rpc(self.CancelJob, batch.CancelJobRequest, operation),
            "ListJobs": rpc(self.ListJobs, batch.ListJobsRequest, batch.ListJobsResponse.serialize),
            "ListTasks": rpc(
                self.ListTasks, batch.ListTasksRequest, batch.ListTasksResponse.serialize
            ),
        }
        yield grpc.method_handlers_generic_handler("google.cloud.batch.v1.BatchService", methods)

    def _spawn(self, coroutine):
        task = asyncio.create_task(coroutine)
        self._work.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task):
        self._work.discard(task)
        if not task.cancelled():
            task.result()

    async def stop(self):
        for machines in self.machines.values():
            for machine in machines:
                machine.destroy()
        for task in list(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    # --- calls

    async def CreateJob(self, request, context):  # noqa: N802  # the service calls it so
        if not re.fullmatch(r"projects/[^/]+/locations/[^/]+", request.parent):
            await context.abort(Code.INVALID_ARGUMENT, f"invalid parent {request.parent!r}")
        project = request.parent.split("/")[1]
        if project != "project":
            await context.abort(
                Code.PERMISSION_DENIED,
                f"Permission 'batch.jobs.create' denied on 'projects/{project}', or Batch API has"
                " not been used in this project before or it is disabled",
            )
        if request.request_id in self.requests:
            return self.requests[request.request_id]
        if not re.fullmatch(JOB_ID, request.job_id):
            await context.abort(Code.INVALID_ARGUMENT, f"Job ID {request.job_id!r} is invalid")
        name = f"{request.parent}/jobs/{request.job_id}"
        if name in self.jobs:
            await context.abort(Code.ALREADY_EXISTS, f"Resource '{name}' already exists")
        problem = find_problem(request.job)
        if problem:
            await context.abort(Code.INVALID_ARGUMENT, problem)
        job = job_types.Job()
        job._pb.CopyFrom(request.job._pb)
        job.name, job.uid = name, f"{request.job_id}-{uuid.uuid4().hex[:8]}"
        job.create_time = timestamp_pb2.Timestamp(seconds=int(time.time()))
        job.status.state = State.QUEUED
        self.jobs[name], self.tasks[name], self.machines[name] = job, [], []
        if request.request_id:
            self.requests[request.request_id] = job
        self._spawn(self._run(job))
        return job

    async def _find(self, name, context):
        if name not in self.jobs:
            await context.abort(Code.NOT_FOUND, f"Resource '{name}' was not found")
        return self.jobs[name]

    async def GetJob(self, request, context):  # noqa: N802  # the service calls it so
        return await self._find(request.name, context)

    async def ListJobs(self, request, context):  # noqa: N802  # the service calls it so
        project = request.parent.split("/")[1]
        if project != "project":
            await context.abort(
                Code.PERMISSION_DENIED, f"Permission 'batch.jobs.list' denied on {project!r}"
            )
        try:
            wanted = Filter(request.filter)
            found = [
                job
                for name, job in sorted(self.jobs.items())
                if name.startswith(f"{request.parent}/") and wanted.matches(job)
            ]
        except ValueError as error:
            await context.abort(Code.INVALID_ARGUMENT, str(error))
        page, token = self._page(found, request)
        return batch.ListJobsResponse(jobs=page, next_page_token=token)

    @staticmethod
    def _page(found, request):
        start = int(request.page_token or 0)
        end = start + min(request.page_size or 100, 1000)
        return found[start:end], str(end) if end < len(found) else ""

    async def ListTasks(self, request, context):  # noqa: N802  # the service calls it so
        name, group, which = request.parent.partition("/taskGroups/")
        if not group or which != "group0":
            await context.abort(Code.INVALID_ARGUMENT, f"invalid parent {request.parent!r}")
        await self._find(name, context)
        page, token = self._page(self.tasks[name], request)
        return batch.ListTasksResponse(tasks=page, next_page_token=token)

    async def CancelJob(self, request, context):  # noqa: N802  # the service calls it so
        job = await self._find(request.name, context)
        if job.status.state in ENDED:
            state = State(job.status.state).name
            await context.abort(Code.FAILED_PRECONDITION, f"Job {job.name} is {state}")
        operation = self._operation(job, "cancel")
        if job.status.state != State.CANCELLATION_IN_PROGRESS:
            self._set(job, State.CANCELLATION_IN_PROGRESS)
            self._spawn(self._cancel(job, operation))
        return operation

    async def _cancel(self, job, operation):
        await self._shut_down(job)
        self._set(job, State.CANCELLED)
        self._finish(operation, batch.CancelJobResponse()._pb)

    async def DeleteJob(self, request, context):  # noqa: N802  # the service calls it so
        job = await self._find(request.name, context)
        operation = self._operation(job, "delete")
        self._set(job, State.DELETION_IN_PROGRESS)
        self._spawn(self._delete(job, operation))
        return operation

    async def _delete(self, job, operation):
        await self._shut_down(job)
        self.jobs.pop(job.name, None)
        self._finish(operation, empty_pb2.Empty())

    async def _shut_down(self, job):
        await asyncio.gather(*(machine.shut_down() for machine in self.machines[job.name]))

    def _operation(self, job, verb):
        metadata = any_pb2.Any()
        metadata.Pack(batch.OperationMetadata(target=job.name, verb=verb, api_version="v1")._pb)
        parent = job.name.partition("/jobs/")[0]
        name = f"{parent}/operations/operation-{uuid.uuid4().hex[:8]}"
        operation = self.operations[name] = operations_pb2.Operation(name=name, metadata=metadata)
        return operation

    @staticmethod
    def _finish(operation, answer):
        operation.response.Pack(answer)
        operation.done = True

    # --- what becomes of a job

    def _set(self, job, state, why=""):
        was = State(job.status.state).name
        words = f"Job state is set from {was} to {State(state).name} for job {job.name}. {why}"
        self.tell(job, words.strip())
        job.status.state = state

    def tell(self, job, words):
        event = task_types.StatusEvent(type_="STATUS_CHANGED", description=words)
        event.event_time = timestamp_pb2.Timestamp(seconds=int(time.time()))
        job.status.status_events.append(event)

    async def _run(self, job):
        group = job.task_groups[0]
        n_tasks = max(1, group.task_count)
        at_once = asyncio.Semaphore(group.parallelism or n_tasks)
        await asyncio.gather(*(self._run_task(job, place, at_once) for place in range(n_tasks)))
        if job.status.state not in (State.SCHEDULED, State.RUNNING):
            return
        tasks = self.tasks[job.name]
        failed = next((task for task in tasks if task.status.state == TaskState.FAILED), None)
        if failed is None:
            self._set(job, State.SUCCEEDED)
            return
        words = failed.status.status_events[-1].description
        self._set(
            job,
            State.FAILED,
            "Job failed due to task failure. Specifically, task with index"
            f' {failed.name.rpartition("/")[2]} failed due to the following task event: "{words}"',
        )

    async def _run_task(self, job, place, at_once):
        async with at_once, self._vms:
            await asyncio.sleep(self._options.provision)
            if job.status.state == State.QUEUED:
                # Nobody has promised that there are tasks before.
                n_tasks = max(1, job.task_groups[0].task_count)
                for index in range(n_tasks):
                    name = f"{job.name}/taskGroups/group0/tasks/{index}"
                    task = task_types.Task(name=name)
                    task.status.state = TaskState.PENDING
                    self.tasks[job.name].append(task)
                    self.machines[job.name].append(Machine(job, index, self._options))
                self._set(job, State.SCHEDULED)
                self._set(job, State.RUNNING)
            if job.status.state != State.RUNNING:
                return
            tasks = self.tasks[job.name]
            task, machine = tasks[place], self.machines[job.name][place]
            if any(other.status.state == TaskState.FAILED for other in tasks):
                # Batch does not say whether it runs what is left of a group that fails.
                task.status.state = TaskState.UNEXECUTED
                return
            task.status.state = TaskState.RUNNING
            rc = await machine.run()
            if task.status.state == TaskState.RUNNING:
                self.end_task(task, rc if rc >= 0 else 128 - rc)

    def end_task(self, task, rc, why=""):
        state = TaskState.FAILED if rc else TaskState.SUCCEEDED
        words = (
            f"Task state is updated from {TaskState(task.status.state).name} to {state.name} on"
            f" zones/z{why} with exit code {rc}."
        )
        event = task_types.StatusEvent(type_="STATUS_CHANGED", description=words)
        task.status.status_events.append(event)
        task.status.state = state


def find_problem(job):
    """Why Batch would not take a job; None: it would."""
    if not job.task_groups:
        return "job.task_groups is required"
    for key, value in job.labels.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key):
            return f"invalid label key {key!r}"
        if not re.fullmatch(r"[a-z0-9_-]{0,63}", value):
            return f"invalid label value {value!r}"
    for runnable in job.task_groups[0].task_spec.runnables:
        if not any(kind in runnable for kind in ("container", "script", "barrier")):
            return "each runnable needs a container, script or barrier"
    return None


# --- what tests ask of it ------------------------------------------------------------------------


class Control:
    def __init__(self, service):
        self._service = service

    async def serve(self, reader, writer):
        async for line in reader:
            request = json.loads(line)
            answer = await getattr(self, request.pop("do"))(**request)
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()

    def _job(self, job_id):
        [job] = [job for name, job in self._service.jobs.items() if name.endswith(f"/{job_id}")]
        return job

    async def calls(self):
        return dict(self._service.calls)

    async def fault(self, rpc, **fault):
        self._service.faults[rpc].append(Fault(**fault))

    async def delay(self, rpc, s):
        self._service.delays[rpc] = s

    async def vms(self, n):
        """How many jobs run at once, from now on."""
        self._service.set_vms(n)

    async def heal(self):
        self._service.set_vms(None)
        self._service.faults.clear()
        self._service.delays.clear()
        self._service.calls.clear()

    async def states(self):
        return {
            name.rpartition("/")[2]: State(job.status.state).name
            for name, job in self._service.jobs.items()
        }

    async def job(self, job_id):
        return json.loads(job_types.Job.to_json(self._job(job_id)))

    async def fail(self, job_id, rc, place=0):
        """The VM of a task is no more: everything on it ends at once."""
        name = self._job(job_id).name
        task = self._service.tasks[name][place]
        self._service.end_task(task, rc, " due to what a test wanted")
        self._service.machines[name][place].destroy()

    async def tasks(self, job_id):
        """The states of a job's tasks, in order."""
        tasks = self._service.tasks[self._job(job_id).name]
        return [TaskState(task.status.state).name for task in tasks]

    async def vanish(self, job_id):
        name = self._job(job_id).name
        del self._service.jobs[name]
        for machine in self._service.machines[name]:
            machine.destroy()

    async def forget_requests(self):
        self._service.requests.clear()

    async def relabel(self, job_id, key, value):
        self._job(job_id).labels[key] = value

    async def say(self, job_id, words):
        self._service.tell(self._job(job_id), words)


# --- making it -----------------------------------------------------------------------------------


async def give_token(reader, writer):
    """What a key is exchanged for; some clients want that (cloudpathlib's), Batch's does not."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = re.search(r"(?i)^content-length: *(\d+)", head, re.MULTILINE)[1]
    await reader.readexactly(int(length))
    body = json.dumps({"access_token": "x", "expires_in": 3600, "token_type": "Bearer"})
    lines = ["HTTP/1.1 200 OK", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    writer.write("\r\n".join([*lines, "Connection: close", "", body]).encode())
    await writer.drain()
    writer.close()


def make_credentials(folder, token_uri):
    """A certificate for localhost, and a service account's key file."""
    files = {"key": folder / "tls.key", "cert": folder / "roots.pem", "rsa": folder / "rsa.key"}
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", files["key"], "-out", files["cert"], "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    account = {
        "type": "service_account",
        "project_id": "project",
        "private_key_id": "1",
        "private_key": files["key"].read_text(),
        "client_email": "tests@project.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": token_uri,
    }
    (folder / "key.json").write_text(json.dumps(account))
    return grpc.ssl_server_credentials([(files["key"].read_bytes(), files["cert"].read_bytes())])


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gcs", required=True)
    parser.add_argument("--vms", type=int, default=32)
    parser.add_argument("--provision", type=float, default=0.02)
    parser.add_argument("--term-grace", type=float, default=2.0)
    parser.add_argument("--stat-ttl", type=float, default=0.0)
    options = parser.parse_args()
    (options.folder / "logs").mkdir(parents=True, exist_ok=True)
    tokens = await asyncio.start_server(give_token, "127.0.0.1", 0)
    port = tokens.sockets[0].getsockname()[1]
    credentials = make_credentials(options.folder, f"http://127.0.0.1:{port}/token")
    service = BatchService(options)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(tuple(service.handlers()))
    port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    control = Control(service)
    await asyncio.start_unix_server(control.serve, options.folder / "control")
    sys.stdout.write(json.dumps({"endpoint": f"localhost:{port}"}) + "\n")
    sys.stdout.flush()
    loop = asyncio.get_running_loop()
    stdin = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    await stdin.read()
    await service.stop()
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(main())
