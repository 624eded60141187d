"""Run a Python script as `python script.py ...` would, but end with the launcher, even if that one is killed outright.

usage: guard.py LAUNCHER_PID SCRIPT [ARGUMENT ...]     (a file of its own: it runs before any package can be imported)
"""

import os
import runpy
import sys
import threading
import time

SYNCHRONIZE, INFINITE = 0x00100000, 0xFFFFFFFF  # Windows' names


def wait_for_end_of(pid):
    """Return once our parent, the process `pid`, has ended."""
    if os.name == "nt":
        import ctypes

        kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel32.OpenProcess.restype = ctypes.c_void_p
        kernel32.WaitForSingleObject.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        handle = kernel32.OpenProcess(SYNCHRONIZE, False, pid)
        if handle:
            kernel32.WaitForSingleObject(handle, INFINITE)
    else:
        while os.getppid() == pid:
            time.sleep(1)


def watch(pid):
    wait_for_end_of(pid)
    os._exit(1)


if __name__ == "__main__":
    launcher, script = int(sys.argv[1]), os.path.abspath(sys.argv[2])
    threading.Thread(target=watch, args=(launcher,), daemon=True).start()
    sys.argv = [script, *sys.argv[3:]]
    sys.path[0] = os.path.dirname(script)
    runpy.run_path(script, run_name="__main__")
