"""Job Objects: the calls of Windows that hold processes together, limit them, and end them with one handle.

Nothing of Windows is touched when this module is imported. Source of the layouts: winnt.h.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import subprocess
from collections.abc import Mapping
from typing import Any

_BASIC_UI, _EXTENDED, _ACCOUNTING = 4, 9, 1
_KILL_ON_CLOSE, _DIE_ON_UNHANDLED = 0x2000, 0x400
_ACTIVE_PROCESS, _JOB_MEMORY, _JOB_TIME = 0x8, 0x200, 0x4
_EVERY_UI_LIMIT = 0xFF
_SUSPENDED, _UNICODE_ENVIRONMENT, _NO_WINDOW, _EXTENDED_STARTUP = 0x4, 0x400, 0x08000000, 0x80000
_USE_HANDLES = 0x100
_TIMEOUT = 0x102
ENDED_BY_US = 137


class NotToBeHad(Exception):
    """Windows refused a Job Object, or to put a process into one."""


class _Basic(ctypes.Structure):
    _fields_ = (
        ("PerProcessUserTimeLimit", ctypes.c_int64),
        ("PerJobUserTimeLimit", ctypes.c_int64),
        ("LimitFlags", ctypes.c_uint32),
        ("MinimumWorkingSetSize", ctypes.c_size_t),
        ("MaximumWorkingSetSize", ctypes.c_size_t),
        ("ActiveProcessLimit", ctypes.c_uint32),
        ("Affinity", ctypes.c_size_t),
        ("PriorityClass", ctypes.c_uint32),
        ("SchedulingClass", ctypes.c_uint32),
    )


class _Extended(ctypes.Structure):
    _fields_ = (
        ("Basic", _Basic),
        ("IoCounters", ctypes.c_uint64 * 6),
        ("ProcessMemoryLimit", ctypes.c_size_t),
        ("JobMemoryLimit", ctypes.c_size_t),
        ("PeakProcessMemoryUsed", ctypes.c_size_t),
        ("PeakJobMemoryUsed", ctypes.c_size_t),
    )


class _Accounting(ctypes.Structure):
    _fields_ = (
        ("TotalUserTime", ctypes.c_int64),
        ("TotalKernelTime", ctypes.c_int64),
        ("ThisPeriodTotalUserTime", ctypes.c_int64),
        ("ThisPeriodTotalKernelTime", ctypes.c_int64),
        ("TotalPageFaultCount", ctypes.c_uint32),
        ("TotalProcesses", ctypes.c_uint32),
        ("ActiveProcesses", ctypes.c_uint32),
        ("TotalTerminatedProcesses", ctypes.c_uint32),
    )


Process = tuple[int, int]
"""The handles of a process and of its first thread."""


_here: Any = ctypes  # Seen from another system these have no Windows in them.
_processes: Any = subprocess


def _kernel32() -> Any:
    assert os.name == "nt", "only Windows has Job Objects"
    library = _here.WinDLL("kernel32", use_last_error=True)
    library.CreateJobObjectW.restype = ctypes.c_void_p
    return library


def _error(what: str) -> NotToBeHad:
    return NotToBeHad(f"{what}: error {_here.get_last_error()}")


class JobObject:
    """`with` a job that ends, and all in it, when it is closed. Limits are those of the whole job."""

    def __init__(self, *, memory_bytes: int | None, processes: int | None, cpu_time_ms: int | None) -> None:
        self._library = _kernel32()
        self._handle = self._library.CreateJobObjectW(None, None)
        if not self._handle:
            raise _error("CreateJobObject")
        limits = _Extended()
        limits.Basic.LimitFlags = _KILL_ON_CLOSE | _DIE_ON_UNHANDLED
        if memory_bytes is not None:
            limits.Basic.LimitFlags |= _JOB_MEMORY
            limits.JobMemoryLimit = memory_bytes
        if processes is not None:
            limits.Basic.LimitFlags |= _ACTIVE_PROCESS
            limits.Basic.ActiveProcessLimit = processes
        if cpu_time_ms is not None:
            limits.Basic.LimitFlags |= _JOB_TIME
            limits.Basic.PerJobUserTimeLimit = cpu_time_ms * 10_000  # In units of 100 ns.
        try:
            self._set(_EXTENDED, limits)
            self._set(_BASIC_UI, ctypes.c_uint32(_EVERY_UI_LIMIT))
            self._check(limits)
        except NotToBeHad:
            self.close()
            raise

    def __enter__(self) -> JobObject:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set(self, kind: int, value: Any) -> None:
        handle = ctypes.c_void_p(self._handle)
        if not self._library.SetInformationJobObject(handle, kind, ctypes.byref(value), ctypes.sizeof(value)):
            raise _error("SetInformationJobObject")

    def _get(self, kind: int, value: Any) -> Any:
        """What Windows tells; all zero where it does not."""
        handle = ctypes.c_void_p(self._handle)
        self._library.QueryInformationJobObject(handle, kind, ctypes.byref(value), ctypes.sizeof(value), None)
        return value

    def _check(self, wanted: Any) -> None:
        """A limit that is taken and then is not there, as in Wine, would be a promise that nobody keeps."""
        held = self._get(_EXTENDED, _Extended())
        pairs = [
            ("memory", held.JobMemoryLimit, wanted.JobMemoryLimit),
            ("processes", held.Basic.ActiveProcessLimit, wanted.Basic.ActiveProcessLimit),
            ("cpu_time", held.Basic.PerJobUserTimeLimit, wanted.Basic.PerJobUserTimeLimit),
        ]
        for name, is_, should in pairs:
            if should and is_ != should:
                raise NotToBeHad(f"the limit {name} is not held here")

    def take(self, process: Process) -> None:
        """A process that has not run yet. One that cannot be taken is ended: it must never run outside."""
        if not self._library.AssignProcessToJobObject(ctypes.c_void_p(self._handle), ctypes.c_void_p(process[0])):
            refusal = _error("AssignProcessToJobObject")
            self._library.TerminateProcess(ctypes.c_void_p(process[0]), ENDED_BY_US)
            close(process)
            raise refusal

    def active(self) -> int:
        return int(self._get(_ACCOUNTING, _Accounting()).ActiveProcesses)

    def used(self) -> Mapping[str, int]:
        times = self._get(_ACCOUNTING, _Accounting())
        return {
            "user_ms": times.TotalUserTime // 10_000,
            "system_ms": times.TotalKernelTime // 10_000,
            "terminated": times.TotalTerminatedProcesses,
            "peak_bytes": self._get(_EXTENDED, _Extended()).PeakJobMemoryUsed,
        }

    def terminate(self) -> None:
        if self._handle:
            self._library.TerminateJobObject(ctypes.c_void_p(self._handle), ENDED_BY_US)

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle:
            self._library.CloseHandle(ctypes.c_void_p(handle))


def create_suspended(
    program: str, line: str, cwd: str, environment: Mapping[str, str], streams: tuple[int, int, int]
) -> Process:
    """Starts a program that does not run yet, with these descriptors and no other. Raises OSError."""
    api: Any = importlib.import_module("_winapi")
    msvcrt: Any = importlib.import_module("msvcrt")
    inheritable: Any = os
    handles = [msvcrt.get_osfhandle(descriptor) for descriptor in streams]
    for handle in handles:
        inheritable.set_handle_inheritable(handle, True)
    start = _processes.STARTUPINFO(
        dwFlags=_USE_HANDLES,
        hStdInput=handles[0],
        hStdOutput=handles[1],
        hStdError=handles[2],
        lpAttributeList={"handle_list": handles},
    )
    flags = _SUSPENDED | _UNICODE_ENVIRONMENT | _NO_WINDOW | _EXTENDED_STARTUP
    try:
        process, thread, _, _ = api.CreateProcess(program, line, None, None, True, flags, dict(environment), cwd, start)
    finally:
        for handle in handles:
            inheritable.set_handle_inheritable(handle, False)
    return int(process), int(thread)


def resume(process: Process) -> None:
    if _kernel32().ResumeThread(ctypes.c_void_p(process[1])) == 0xFFFFFFFF:
        raise _error("ResumeThread")


def wait(process: Process, timeout_ms: int | None) -> bool:
    """Whether it has ended. In slices, so that a signal of ours is heeded meanwhile."""
    library = _kernel32()
    left = timeout_ms
    while True:
        slice_ms = 100 if left is None else min(100, left)
        if library.WaitForSingleObject(ctypes.c_void_p(process[0]), slice_ms) != _TIMEOUT:
            return True
        if left is not None:
            left -= slice_ms
            if left <= 0:
                return False


def exit_code(process: Process) -> int:
    code = ctypes.c_uint32()
    _kernel32().GetExitCodeProcess(ctypes.c_void_p(process[0]), ctypes.byref(code))
    return int(code.value)


def close(process: Process) -> None:
    for handle in process:
        _kernel32().CloseHandle(ctypes.c_void_p(handle))


def lives(pid: int) -> bool:
    """Whether a process is still running."""
    library = _kernel32()
    library.OpenProcess.restype = ctypes.c_void_p
    handle = library.OpenProcess(0x100000, False, pid)  # SYNCHRONIZE
    if not handle:
        return False
    ended = library.WaitForSingleObject(ctypes.c_void_p(handle), 0) != _TIMEOUT
    library.CloseHandle(ctypes.c_void_p(handle))
    return not ended
