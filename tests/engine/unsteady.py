"""Kinds of steps whose results are not always the same, each with what makes it so. Commands of our own.

The kinds were measured on real tools: some differ each time, some only at another time, with another mask or
path, in another order of files, or when the processors are busy. A second run in the same place sees the first
group only.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass

from requiem_build.core.programs import programs
from requiem_build.sandbox.distribution import Distribution

CLOCK, RANDOM, PARALLEL = {"clock"}, {"randomness"}, {"parallelism", "cpu count", "order"}
BOTH = CLOCK | RANDOM | PARALLEL


@dataclass(frozen=True)
class Kind:
    """`causes`: at least one of them must be named. `held`: the request fixes it, and the result is not unsteady."""

    name: str
    command: str
    causes: frozenset[str]
    held: bool = False
    tools: tuple[str, ...] = ()


def kind(name: str, command: str, causes: set[str], *, held: bool = False, tools: str = "") -> Kind:
    return Kind(name, command, frozenset(causes), held, tuple(tools.split()))


def python(code: str, flags: str = "") -> str:
    return f"python3 {flags} -c {code!r}" if "'" not in code else f'python3 {flags} -c "{code}"'


NO_EPOCH = "env -u SOURCE_DATE_EPOCH "
C = "printf 'int f(void){return 1;}\\n' > x.c; "

EACH_TIME = [
    kind(
        "time-macro",
        "printf 'char*t=__DATE__ __TIME__;\\n' > x.c; " + NO_EPOCH + "gcc -c x.c -o out",
        CLOCK,
        tools="gcc",
    ),
    kind("lto", C + "gcc -flto -c x.c -o out", RANDOM, tools="gcc"),
    kind("coverage", C + NO_EPOCH + "gcc --coverage -c x.c -o out", CLOCK | RANDOM, tools="gcc"),
    kind("build-id", C + "gcc -shared -Wl,--build-id=uuid x.c -o out", RANDOM, tools="gcc"),
    kind("ar-dated", "echo 1 > a; ar rcU out a", CLOCK, tools="ar"),
    kind("tar-directory", "mkdir d; echo 1 > d/a; tar cf out d", CLOCK),
    kind("gzip-file", "echo 1 > a; gzip a; mv a.gz out", CLOCK),
    kind("zip-made", "echo 1 > a; " + python("import zipfile; z=zipfile.ZipFile('out','w'); z.write('a')"), CLOCK),
    kind(
        "zip-uuid",
        python(
            "import zipfile,uuid; z=zipfile.ZipFile('out','w'); z.writestr(zipfile.ZipInfo('id'),str(uuid.uuid4()))"
        ),
        RANDOM,
    ),
    kind("pyc", "echo 'x=1' > m.py; " + NO_EPOCH + "python3 -m compileall -q -b m.py; mv m.pyc out", CLOCK),
    kind("set-order", python("print({str(i) for i in range(50)})", "-I") + " > out", RANDOM),
    kind(
        "set-pickle", python("import pickle; pickle.dump({str(i) for i in range(50)},open('out','wb'))", "-I"), RANDOM
    ),
    kind("uuid4", python("import uuid; print(uuid.uuid4())") + " > out", RANDOM),
    kind("shell-random", "echo $RANDOM $RANDOM > out", CLOCK | RANDOM),
    kind("append-race", "for i in $(seq 40); do (echo $i >> out) & done; wait", PARALLEL | RANDOM | CLOCK),
    kind(
        "thread-race",
        python(
            "import threading,os; f=open('out','a',1); t=[threading.Thread(target=lambda i=i:(sum(range(9000+os.urandom(1)[0]*900)),f.write(str(i)+chr(10)))) for i in range(9)]; [x.start() for x in t]; [x.join() for x in t]"
        ),
        PARALLEL | RANDOM | CLOCK,
    ),
    kind("date", "date > out", CLOCK),
    kind("date-fine", "date +%s%N > out", CLOCK),
    kind(
        "wheel",
        "mkdir w; echo 1 > w/a.py; "
        + python("import zipfile; z=zipfile.ZipFile('out','w'); z.write('w/a.py'); z.writestr('w/RECORD','a')"),
        CLOCK,
    ),
    kind("sdist", "mkdir s; echo 1 > s/a.py; tar czf out s", CLOCK),
    kind("gzip-library", python("import gzip; gzip.open('out','wb').write(b'csv')"), CLOCK),
    kind("figure-ids", python("import uuid; print('<svg id=m'+uuid.uuid4().hex[:10]+'/>')") + " > out", RANDOM),
    kind(
        "creation-date",
        python("import time; print('/CreationDate (D:'+time.strftime('%Y%m%d%H%M%S')+')')") + " > out",
        CLOCK,
    ),
    kind("unseeded", python("import random; print([random.random() for _ in range(9)])") + " > out", RANDOM),
    kind(
        "environment-pickle",
        python("import pickle,time; pickle.dump(({str(i) for i in range(50)},time.time()),open('out','wb'))", "-I"),
        BOTH,
    ),
    kind(
        "junit",
        python("import time; print('<testsuite timestamp=%r time=%r/>'%(time.strftime('%FT%T'),time.perf_counter()))")
        + " > out",
        BOTH,
    ),
    kind("key", "openssl rand -hex 16 > out", BOTH, tools="openssl"),
    kind("nonce-dev-random", "head -c 8 /dev/random | od -An -tx1 > out", RANDOM),
    kind("shuffle", "seq 50 | shuf > out", RANDOM | {"order"}),
    kind("temporary-name", "mktemp -u > out", BOTH),
]

LATER = [
    kind(
        "timestamp-macro",
        "printf 'char*t=__TIMESTAMP__;\\n' > x.c; " + NO_EPOCH + "gcc -c x.c -o out",
        CLOCK,
        tools="gcc",
    ),
    kind("day", "date +%F > out", CLOCK),
    kind("year", python("import datetime; print('(c)',datetime.date.today().year)") + " > out", CLOCK),
    kind("gzip-stdin", "echo 1 > a; gzip < a > out", CLOCK),
    kind("user", "id -un > out", {"uid and HOME"}, held=True),
    kind("host", "uname -n > out", {"hostname"}, held=True),
    kind(
        "zip-modes",
        "umask; echo 1 > a; touch -d @$SOURCE_DATE_EPOCH a; "
        + python("import zipfile; z=zipfile.ZipFile('out','w'); z.write('a')"),
        {"umask"},
        held=True,
    ),
]

ELSEWHERE = [
    kind(
        "file-macro",
        "printf 'char*t=__FILE__;\\n' > x.c; gcc -c $PWD/x.c -o out",
        {"workspace path"},
        held=True,
        tools="gcc",
    ),
    kind("debug", C + "gcc -g -c x.c -o out", {"workspace path"}, held=True, tools="gcc"),
    kind("debug-cxx", C + "g++ -g -c x.c -o out", {"workspace path"}, held=True, tools="g++"),
    kind("lto-seeded", C + "gcc -g -flto -frandom-seed=x -c x.c -o out", {"workspace path"}, held=True, tools="gcc"),
    kind("pwd", "pwd > out", {"workspace path"}, held=True),
    kind(
        "source-map", python("import os; print(os.path.relpath('/usr/lib'))") + " > out", {"workspace path"}, held=True
    ),
]

ORDERED = [
    kind(
        "find-ar",
        "find src -type f | sed 's/^/ /' | tr -d '\\n' > list; ar rcD out $(cat list)",
        {"directory order"},
        tools="ar",
    ),
    kind("listdir", python("import os; print(os.listdir('src'))") + " > out", {"directory order"}),
    kind(
        "group-by",
        python(
            "import concurrent.futures as c,os; p=c.ThreadPoolExecutor(len(os.sched_getaffinity(0))*4); print([f.result() for f in c.as_completed([p.submit(lambda i=i:(sum(range(40000)),i)[1]) for i in range(60)])])"
        )
        + " > out",
        PARALLEL | CLOCK | RANDOM,
    ),
]

KINDS = [*EACH_TIME, *LATER, *ELSEWHERE, *ORDERED]

STEADY = [
    kind("plain", C + "gcc -c x.c -o out", set(), tools="gcc"),
    kind(
        "tar-normal",
        "mkdir d; echo 1 > d/a; tar --sort=name --mtime=@$SOURCE_DATE_EPOCH --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX -cf out d",
        set(),
    ),
    kind("sorted", "ls src | LC_ALL=C sort > out", set()),
    kind("gzip-n", "echo 1 | gzip -n > out", set()),
    kind("sorted-set", python("print(sorted({str(i) for i in range(50)}))", "-I") + " > out", set()),
]


def manifest(kinds: list[Kind]) -> str:
    """Each kind as a step of its own. All see the same packages, so that those under one perturbation share a worker."""
    tools: set[str] = set()
    with tempfile.TemporaryDirectory() as cache:
        distribution = Distribution(cache)
        for each in kinds:
            named = programs(["bash", "-c", each.command], {})
            tools |= {*each.tools, *(name for name in named if "/" not in name and distribution.owner(name))}
    steps = []
    for each in kinds:
        steps.append(
            f"[steps.{each.name}]\ncommand = '''{each.command}; mkdir -p o; mv out o/{each.name}'''\n"
            f"tools = {json.dumps(sorted(tools))}\n"
            f'inputs = ["src/*.o"]\noutputs = ["o/{each.name}"]\n'
        )
    return "\n".join(steps)
