"""Mounts a bucket of a GCS emulator with the semantics that gcsfuse documents.

    bucket_mount.py ENDPOINT BUCKET[/FOLDER] MOUNTPOINT [--implicit-dirs] [--stat-ttl=SECONDS]
        [--write-back=SECONDS]

- What is written stays here until a descriptor of the file is closed; then the whole object is.
- It is written only over the generation that was opened (0: none was there): else the close fails
  with ESTALE, and what was written is lost.
- A folder is an object whose name ends with "/"; with --implicit-dirs, also what has objects below.
- What is known of a name, also that it is not there, is believed for --stat-ttl seconds.
- With --write-back it is another kind of mount, as rclone's can be: closing waits for nothing; what
  was written is seen here at once, and elsewhere some seconds later, the last file first and over
  whatever is there. When it is unmounted all is written.

It says "mounted" when it is, and ends when it is unmounted.
"""

from __future__ import annotations

import argparse
import errno
import http.client
import json
import os
import stat
import sys
import tempfile
import threading
import time
import urllib.parse
import uuid

import mfusepy


class Bucket:
    """The objects, over the JSON interface; one connection, kept open."""

    def __init__(self, endpoint, name):
        self._address = urllib.parse.urlsplit(endpoint).netloc
        self._name = name
        self._connection = None

    def _ask(self, method, path, query=None, body=None, kind="application/json"):
        url = f"{path}?{urllib.parse.urlencode(query or {})}"
        for attempt in (1, 2):
            if self._connection is None:
                self._connection = http.client.HTTPConnection(self._address, timeout=30)
            try:
                self._connection.request(method, url, body, {"Content-Type": kind})
                answer = self._connection.getresponse()
                return answer.status, answer.read()
            except (ConnectionError, http.client.HTTPException):
                self._connection = None
                if attempt == 2:
                    raise mfusepy.FuseOSError(errno.EIO) from None
        return None

    def _path(self, key):
        return f"/storage/v1/b/{self._name}/o/{urllib.parse.quote(key, safe='')}"

    def list(self, prefix):
        """The objects right below a prefix, by name, and the names of the folders there."""
        objects, folders, token = {}, set(), ""
        while True:
            query = {"prefix": prefix, "delimiter": "/", "pageToken": token}
            status, body = self._ask("GET", f"/storage/v1/b/{self._name}/o", query)
            if status != 200:
                raise mfusepy.FuseOSError(errno.EIO)
            page = json.loads(body)
            objects.update({item["name"]: item for item in page.get("items", ())})
            folders.update(page.get("prefixes", ()))
            token = page.get("nextPageToken", "")
            if not token:
                return objects, folders

    def read(self, key):
        status, body = self._ask("GET", self._path(key), {"alt": "media"})
        if status != 200:
            raise mfusepy.FuseOSError(errno.ENOENT)
        return body

    def write(self, key, data, generation):
        """The new generation; None: that one is not there any more. (`generation` None: any.)"""
        # In two parts: the emulator knows no conditions for uploads in one.
        boundary = f"part-{uuid.uuid4().hex}"
        metadata = json.dumps({"name": key, "contentType": "application/octet-stream"})
        body = (
            f"--{boundary}\r\nContent-Type: application/json\r\n\r\n{metadata}\r\n"
            f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
        ).encode()
        query = {"uploadType": "multipart"}
        if generation is not None:
            query["ifGenerationMatch"] = generation
        status, body = self._ask(
            "POST",
            f"/upload/storage/v1/b/{self._name}/o",
            query,
            b"%s%s\r\n--%s--\r\n" % (body, data, boundary.encode()),
            f"multipart/related; boundary={boundary}",
        )
        if status == 412:
            return None
        if status != 200:
            raise mfusepy.FuseOSError(errno.EIO)
        return int(json.loads(body)["generation"])

    def delete(self, key):
        self._ask("DELETE", self._path(key))

    def copy(self, key, to):
        target = f"/rewriteTo{self._path(to).removeprefix('/storage/v1')}"
        status, _ = self._ask("POST", self._path(key) + target, body=b"{}")
        if status != 200:
            raise mfusepy.FuseOSError(errno.EIO)


class LateBucket(Bucket):
    """A bucket that is written later; what has not been written yet is known here alone."""

    def __init__(self, endpoint, name, after_s):
        super().__init__(endpoint, name)
        self._late = Bucket(endpoint, name)
        self._after_s = after_s
        self._unwritten = {}
        self._guard = threading.Lock()
        self._is_over = threading.Event()
        self._writer = threading.Thread(target=self._write_late)

    def open(self):
        self._writer.start()

    def close(self):
        self._is_over.set()
        self._writer.join()

    def _write_late(self):
        while not self._is_over.wait(self._after_s):
            self._write_all()
        self._write_all()

    def _write_all(self):
        with self._guard:
            found = list(self._unwritten.items())
        for key, data in reversed(found):
            self._late.write(key, data, None)
            with self._guard:
                if self._unwritten.get(key) is data:
                    del self._unwritten[key]

    def list(self, prefix):
        with self._guard:
            mine = {key: data for key, data in self._unwritten.items() if key.startswith(prefix)}
        objects, folders = super().list(prefix)
        for key, data in mine.items():
            below, slash, _ = key.removeprefix(prefix).partition("/")
            if slash:
                folders.add(f"{prefix}{below}/")
            else:
                objects[key] = {"name": key, "size": len(data), "generation": 1}
        return objects, folders

    def read(self, key):
        with self._guard:
            data = self._unwritten.get(key)
        return super().read(key) if data is None else data

    def write(self, key, data, generation):
        with self._guard:
            self._unwritten.pop(key, None)
            self._unwritten[key] = bytes(data)
        return 1

    def delete(self, key):
        with self._guard:
            self._unwritten.pop(key, None)
        super().delete(key)

    def copy(self, key, to):
        self.write(to, self.read(key), None)


class File:
    """A file while somebody has it open."""

    def __init__(self, generation, data=b""):
        self.content = tempfile.TemporaryFile()  # noqa: SIM115  # closed at the last release
        self.content.write(data)
        self.content.flush()
        self.generation = generation
        self.is_dirty = False
        self.n_open = 0
        self.changed_s = time.time()

    @property
    def size(self):
        return os.fstat(self.content.fileno()).st_size


class BucketMount(mfusepy.Operations):
    use_ns = True

    def __init__(self, bucket, folder, *, implicit_dirs, stat_ttl_s):
        self._bucket = bucket
        self._prefix = f"{folder}/" if folder else ""
        self._implicit_dirs = implicit_dirs
        self._stat_ttl_s = stat_ttl_s
        self._known = {}
        self._files = {}
        self._handles = {}
        self._last_handle = 0

    def init(self, path):
        if isinstance(self._bucket, LateBucket):
            self._bucket.open()
        sys.stdout.write("mounted\n")
        sys.stdout.flush()

    def destroy(self, path):
        if isinstance(self._bucket, LateBucket):
            self._bucket.close()

    def _key(self, path):
        return self._prefix + path.lstrip("/")

    # --- names

    def _find(self, path):
        """The object (a dict) of a path, True for a folder, None for nothing."""
        if path == "/":
            return True
        at_s, found = self._known.get(path, (0, None))
        if time.monotonic() - at_s < self._stat_ttl_s:
            return found
        key = self._key(path)
        objects, folders = self._bucket.list(key)
        found = objects.get(key)
        if found is None and f"{key}/" in folders:
            marked, _ = ({}, ()) if self._implicit_dirs else self._bucket.list(f"{key}/")
            found = True if self._implicit_dirs or f"{key}/" in marked else None
        self._known[path] = (time.monotonic(), found)
        return found

    def getattr(self, path, fh=None):
        file = self._files.get(path)
        found = None if file else self._find(path)
        if file is None and found is None:
            raise mfusepy.FuseOSError(errno.ENOENT)
        owner = {"st_uid": os.getuid(), "st_gid": os.getgid()}
        if found is True:
            return {"st_mode": stat.S_IFDIR | 0o777, "st_nlink": 2, **owner}
        size = file.size if file else int(found.get("size", 0))
        changed_s = file.changed_s if file else 0
        return {
            "st_mode": stat.S_IFREG | 0o777,
            "st_nlink": 1,
            "st_size": size,
            "st_mtime": int(changed_s * 1e9),
            **owner,
        }

    def readdir(self, path, fh):
        prefix = self._key(path).rstrip("/") + "/" if self._key(path) else ""
        objects, folders = self._bucket.list(prefix)
        names = {name.removeprefix(prefix).rstrip("/") for name in (*objects, *folders)}
        below = path.rstrip("/") + "/"
        names |= {open_.removeprefix(below) for open_ in self._files if open_.startswith(below)}
        return [".", "..", *sorted(name for name in names if name and "/" not in name)]

    def mkdir(self, path, mode):
        self._bucket.write(f"{self._key(path)}/", b"", 0)
        self._known.pop(path, None)

    def rmdir(self, path):
        if len(self.readdir(path, 0)) > 2:
            raise mfusepy.FuseOSError(errno.ENOTEMPTY)
        self._bucket.delete(f"{self._key(path)}/")
        self._known.pop(path, None)

    def unlink(self, path):
        self._bucket.delete(self._key(path))
        self._known.pop(path, None)

    def rename(self, old, new):
        found = self._find(old)
        if found is True:
            raise mfusepy.FuseOSError(errno.ENOTSUP)
        self._bucket.copy(self._key(old), self._key(new))
        self.unlink(old)
        self._known.pop(new, None)

    # --- contents

    def _open(self, path, *, create=False, truncate=False):
        file = self._files.get(path)
        if file is None:
            found = self._find(path)
            if found is None and not create:
                raise mfusepy.FuseOSError(errno.ENOENT)
            if found is not None and create:  # since the kernel has asked
                raise mfusepy.FuseOSError(errno.EEXIST)
            if isinstance(found, dict):
                data = b"" if truncate else self._bucket.read(self._key(path))
                file = File(int(found["generation"]), data)
            else:
                file = File(0)
            self._files[path] = file
        if truncate:
            file.content.truncate(0)
        file.is_dirty = file.is_dirty or create or truncate
        file.n_open += 1
        self._last_handle += 1
        self._handles[self._last_handle] = (path, file)
        return self._last_handle

    def open(self, path, flags):
        return self._open(path, truncate=bool(flags & os.O_TRUNC))

    def create(self, path, mode, fi=None):
        return self._open(path, create=True)

    def read(self, path, size, offset, fh):
        return os.pread(self._handles[fh][1].content.fileno(), size, offset)

    def write(self, path, data, offset, fh):
        file = self._handles[fh][1]
        file.is_dirty, file.changed_s = True, time.time()
        return os.pwrite(file.content.fileno(), data, offset)

    def truncate(self, path, length, fh=None):
        handle = fh or self._open(path)
        file = self._handles[handle][1]
        file.content.truncate(length)
        file.is_dirty = True
        if fh is None:
            self.flush(path, handle)
            self.release(path, handle)

    def flush(self, path, fh):
        """A descriptor is closed: of this all else follows."""
        file = self._handles[fh][1]
        if not file.is_dirty:
            return 0
        data = os.pread(file.content.fileno(), file.size, 0)
        generation = self._bucket.write(self._key(path), data, file.generation)
        self._known.pop(path, None)
        if generation is None:
            raise mfusepy.FuseOSError(errno.ESTALE)
        file.generation, file.is_dirty = generation, False
        return 0

    def fsync(self, path, datasync, fh):
        return 0

    def release(self, path, fh):
        path, file = self._handles.pop(fh)
        file.n_open -= 1
        if not file.n_open and self._files.get(path) is file:
            del self._files[path]
            file.content.close()
        return 0

    def chmod(self, path, mode):
        return 0

    def chown(self, path, uid, gid):
        return 0

    def utimens(self, path, times=None):
        return 0

    def statfs(self, path):
        return {"f_bsize": 4096, "f_blocks": 1 << 40, "f_bavail": 1 << 40, "f_bfree": 1 << 40}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("endpoint")
    parser.add_argument("remote")
    parser.add_argument("mountpoint")
    parser.add_argument("--implicit-dirs", action="store_true")
    parser.add_argument("--stat-ttl", type=float, default=0.0)
    parser.add_argument("--write-back", type=float, default=0.0)
    args = parser.parse_args()
    name, _, folder = args.remote.strip("/").partition("/")
    late = args.write_back and LateBucket(args.endpoint, name, args.write_back)
    mount = BucketMount(
        late or Bucket(args.endpoint, name),
        folder,
        implicit_dirs=args.implicit_dirs,
        stat_ttl_s=args.stat_ttl,
    )
    mfusepy.FUSE(
        mount,
        args.mountpoint,
        foreground=True,
        nothreads=True,
        direct_io=True,
        attr_timeout=0,
        entry_timeout=0,
        negative_timeout=0,
        fsname="bucket_mount",
    )


if __name__ == "__main__":
    main()
