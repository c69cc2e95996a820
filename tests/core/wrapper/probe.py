"""`probe.c` where there is no C compiler: the same command, slower."""

import os
import signal
import sys
import time


def show(arguments):
    records = [b"a" + os.fsencode(argument) for argument in arguments]
    records += [b"e" + name + b"=" + value for name, value in os.environb.items()]
    records += [b"c" + os.getcwdb(), b"i" + os.readlink(b"/proc/self/fd/0")]
    for fd in range(1024):
        try:
            os.fstat(fd)
        except OSError:
            continue
        records.append(b"f%d" % fd)
    python_ignores = {signal.SIGPIPE, signal.SIGXFSZ}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    for number in range(1, 32):
        if signal.getsignal(number) is signal.SIG_IGN and number not in python_ignores:
            records.append(b"g%d" % number)
        if number in blocked:
            records.append(b"b%d" % number)
    os.write(1, b"".join(record + b"\0" for record in records))


def die(number):
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def keep(code, ms):
    for number in set(range(1, 32)) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, lambda *_: None)
    end_s = time.monotonic() + ms / 1000
    os.write(1, b"ready\n")
    while time.monotonic() < end_s:
        time.sleep(0.001)
    sys.exit(code)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["show", *arguments]:
            show(arguments)
        case ["die", number]:
            die(int(number))
        case ["keep", code, ms]:
            keep(int(code), int(ms))
