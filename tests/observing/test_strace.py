"""What strace's lines say: pure, on lines as strace 6.1 writes them."""

from __future__ import annotations

from requiem_build.core.observation import EXECUTED, LISTED, LOOKED, READ, WROTE, Access
from requiem_build.sandbox.strace import parse


def x(text: str | bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in (text.encode() if isinstance(text, str) else text))


WORKER = [
    f'7 execve("{x("/usr/bin/python3")}", ["{x("python3")}"], 0x1 /* 0 vars */) = 0',
    f'7 openat(AT_FDCWD<{x("/w")}>, "{x("/workspace/of-the-worker")}", O_RDONLY) = 3<{x("/w")}>',
    "7 clone(child_stack=NULL, flags=SIGCHLD) = 8",
    f'8 openat(AT_FDCWD<{x("/")}>, "{x("/workspace/of-the-init")}", O_RDONLY) = 3<{x("/w")}>',
    "8 vfork( <unfinished ...>",
]


def accesses(*lines: str) -> list[Access]:
    start = f'10 execve("{x("./run")}", ["{x("run")}"], 0x1 /* 3 vars */) = 0'
    chdir = f'10 chdir("{x("/workspace")}") = 0'
    return parse(line.encode() + b"\n" for line in [*WORKER, chdir, start, *lines])[1:]


def test_the_workers_own_doings_are_left_out() -> None:
    late = f'8 openat(AT_FDCWD<{x("/")}>, "{x("/workspace/of-the-init-again")}", O_RDONLY) = 3<{x("/w")}>'
    assert accesses(late) == []


def test_the_step_begins_with_its_program() -> None:
    start = f'10 execve("{x("/workspace/run")}", ["{x("run")}"], 0x1 /* 3 vars */) = 0'
    assert parse(line.encode() for line in [*WORKER, start]) == [Access(EXECUTED, "/workspace/run")]


def test_each_call_says_what_it_wanted() -> None:
    at = f"AT_FDCWD<{x('/workspace')}>"
    assert accesses(
        f'10 openat({at}, "{x("a")}", O_RDONLY|O_CLOEXEC) = 3<{x("/workspace/a")}>',
        f'10 openat({at}, "{x("b")}", O_WRONLY|O_CREAT|O_TRUNC, 0666) = 3<{x("/workspace/b")}>',
        f'10 openat({at}, "{x("log")}", O_WRONLY|O_CREAT|O_APPEND, 0666) = 3<{x("/workspace/log")}>',
        f'10 newfstatat({at}, "{x("c")}", 0x7ffc, 0) = -1 ENOENT (No such file or directory)',
        f'10 newfstatat(3<{x("/workspace/a")}>, "", {{st_mode=S_IFREG|0644, ...}}, AT_EMPTY_PATH) = 0',
        f"10 getdents64(3<{x('/workspace/d')}>, 0x1 /* 3 entries */, 32768) = 80",
        f'10 renameat2({at}, "{x("o")}", {at}, "{x("n")}", RENAME_NOREPLACE) = 0',
        f'10 unlink("{x("/workspace/u")}") = -1 EROFS (Read-only file system)',
        "10 exit_group(0) = ?",
    ) == [
        Access(READ, "/workspace/a"),
        Access(WROTE, "/workspace/b"),
        Access(READ, "/workspace/log"),
        Access(WROTE, "/workspace/log"),
        Access(LOOKED, "/workspace/c", "ENOENT"),
        Access(LISTED, "/workspace/d"),
        Access(WROTE, "/workspace/o"),
        Access(WROTE, "/workspace/n"),
        Access(WROTE, "/workspace/u", "EROFS"),
    ]


def test_relative_paths_follow_each_process_to_where_it_is() -> None:
    at = f"AT_FDCWD<{x('/workspace')}>"
    assert accesses(
        f'10 newfstatat({at}, "{x("seen")}", 0x7ffc, 0) = 0',
        "10 vfork() = 5 /* 77 in strace's PID NS */",
        f'77 chdir("{x("sub")}") = 0',
        f'77 open("{x("../x")}", O_RDONLY) = 3<{x("/workspace/x")}>',
        f'77 execve("{x("./tool")}", ["{x("t")}"], 0x1) = -1 ENOENT (No such file or directory)',
        f'10 open("{x("y")}", O_RDONLY) = 3<{x("/workspace/y")}>',
        f"77 fchdir(4<{x('/tmp')}>) = 0",
        f'77 access("{x("z")}", R_OK) = 0',
    )[2:] == [
        Access(READ, "/workspace/sub/../x"),
        Access(EXECUTED, "/workspace/sub/./tool", "ENOENT"),
        Access(READ, "/workspace/y"),
        Access(LOOKED, "/tmp/z"),
    ]


def test_calls_that_are_told_in_two_pieces_are_one() -> None:
    at = f"AT_FDCWD<{x('/workspace')}>"
    assert accesses(
        f'10 openat({at}, "{x("a")}", O_RDONLY <unfinished ...>',
        f'11 openat({at}, "{x("b")}", O_RDONLY) = 3<{x("/workspace/b")}>',
        f"10 <... openat resumed>) = 3<{x('/workspace/a')}>",
    ) == [Access(READ, "/workspace/b"), Access(READ, "/workspace/a")]


def test_names_may_hold_anything() -> None:
    odd = b'sp ace"\n,) = 0 <unfinished ...>\xff'
    at = f"AT_FDCWD<{x('/workspace')}>"
    (found,) = accesses(f'10 openat({at}, "{x(odd)}", O_RDONLY) = 3<{x(odd)}>')
    assert found.path.encode("utf-8", "surrogateescape") == b"/workspace/" + odd
