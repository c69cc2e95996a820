"""Import asyncio and simplug, then xqute, and tell what each took.

Prints, in ms: `base_wall`, `base_cpu` (the first two) and `xqute_wall`, `xqute_cpu` (xqute, after
them).
"""

import time

marks = [(time.perf_counter(), time.process_time())]
import asyncio  # noqa: E402, F401

import simplug  # noqa: E402, F401

marks.append((time.perf_counter(), time.process_time()))
import xqute  # noqa: E402, F401

marks.append((time.perf_counter(), time.process_time()))

import json  # noqa: E402

(wall_0, cpu_0), (wall_1, cpu_1), (wall_2, cpu_2) = marks
print(
    json.dumps(
        {
            "base_wall": (wall_1 - wall_0) * 1000,
            "base_cpu": (cpu_1 - cpu_0) * 1000,
            "xqute_wall": (wall_2 - wall_1) * 1000,
            "xqute_cpu": (cpu_2 - cpu_1) * 1000,
        }
    )
)
