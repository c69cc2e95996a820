"""Mounts a folder as a network file system shows one that other machines write to.

    mount.py FOLDER MOUNTPOINT --lag=SECONDS

- A listing tells what was there `lag` seconds ago: new names are missing, removed ones are told.
- What was looked up is believed as long, also that a name is not there.
- What is read or made through the mount is the folder's, at once.

Whoever writes to FOLDER itself is another machine. What is made here belongs to the owner of
FOLDER. It says "mounted" when it is, and ends when it is unmounted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext

import mfusepy


@contextmanager
def mounted(folder, mountpoint, lag_s, as_root=nullcontext):
    """Have a folder mounted, as root, within the block."""
    argv = [sys.executable, __file__, folder, mountpoint, f"--lag={lag_s}"]
    with as_root():
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "mounted\n"
        yield
    finally:
        with as_root():
            subprocess.run(["umount", "--lazy", mountpoint], check=False, timeout=20)
            try:
                process.communicate(timeout=20)
            finally:
                process.kill()


class LaggingMount(mfusepy.Operations):
    use_ns = True

    def __init__(self, folder, lag_s):
        self._folder = folder
        self._lag_s = lag_s
        self._listed = {}

    def init(self, path):
        owner = os.stat(self._folder)
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
        sys.stdout.write("mounted\n")
        sys.stdout.flush()

    def _path(self, path):
        return f"{self._folder}{path}"

    def readdir(self, path, fh):
        """Each name of the last listings, by when it came and when it was found missing."""
        now_s = time.time()
        names = set(os.listdir(self._path(path)))
        listed = self._listed.setdefault(path, {})
        for name in names - listed.keys():
            try:
                listed[name] = [os.lstat(f"{self._path(path)}/{name}").st_ctime, None]
            except FileNotFoundError:
                continue
        for name, times in list(listed.items()):
            times[1] = None if name in names else times[1] or now_s
            if times[1] and now_s - times[1] > self._lag_s:
                del listed[name]
        old = [name for name, (came_s, _) in listed.items() if now_s - came_s >= self._lag_s]
        return [".", "..", *old]

    def getattr(self, path, fh=None):
        about = os.lstat(self._path(path))
        return {
            "st_mode": about.st_mode,
            "st_nlink": about.st_nlink,
            "st_size": about.st_size,
            "st_uid": about.st_uid,
            "st_gid": about.st_gid,
            "st_atime": about.st_atime_ns,
            "st_mtime": about.st_mtime_ns,
            "st_ctime": about.st_ctime_ns,
        }

    def open(self, path, flags):
        return os.open(self._path(path), flags)

    def create(self, path, mode, fi=None):
        # The kernel says O_EXCL only if it must be new; else it has looked, perhaps long ago.
        return os.open(self._path(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def read(self, path, size, offset, fh):
        return os.pread(fh, size, offset)

    def write(self, path, data, offset, fh):
        return os.pwrite(fh, data, offset)

    def truncate(self, path, length, fh=None):
        os.truncate(self._path(path), length)

    def fsync(self, path, datasync, fh):
        os.fsync(fh)

    def release(self, path, fh):
        os.close(fh)

    def mkdir(self, path, mode):
        os.mkdir(self._path(path), mode)

    def rmdir(self, path):
        os.rmdir(self._path(path))

    def unlink(self, path):
        os.unlink(self._path(path))

    def rename(self, old, new):
        os.rename(self._path(old), self._path(new))

    def chmod(self, path, mode):
        os.chmod(self._path(path), mode)

    def utimens(self, path, times=None):
        os.utime(self._path(path), ns=times)

    def statfs(self, path):
        return {"f_bsize": 4096, "f_blocks": 1 << 30, "f_bavail": 1 << 30, "f_bfree": 1 << 30}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("mountpoint")
    parser.add_argument("--lag", type=float, required=True)
    args = parser.parse_args()
    mfusepy.FUSE(
        LaggingMount(os.path.realpath(args.folder), args.lag),
        args.mountpoint,
        foreground=True,
        nothreads=True,
        direct_io=True,  # close-to-open: who opens a file reads what is in it
        attr_timeout=args.lag,
        entry_timeout=args.lag,
        negative_timeout=args.lag,
        allow_other=True,
        fsname="xqute-lagging",
    )


if __name__ == "__main__":
    main()
