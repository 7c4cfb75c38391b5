"""More kinds than those that were measured: other tools, other formats, other facts that leak into a result.

With `unsteady.py` they are more than the 96 that the suite promises; `test_there_are_96_kinds` counts them.
"""

from __future__ import annotations

from unsteady import BOTH, CLOCK, NO_EPOCH, PARALLEL, RANDOM, C, Kind, kind, python

HOST, ADDRESSES, ORDER, PATH = {"host facts"}, {"address layout"}, {"directory order"}, {"workspace path"}
USER, MASK, CPUS = {"uid and HOME"}, {"umask"}, {"cpu count"}
UNKNOWN = {"unknown"}
"""What no perturbation reaches: it must be found to differ, and nothing may be named that it is not."""

OLD = "touch -d @$SOURCE_DATE_EPOCH "

ARCHIVES = [
    kind("tar-pax-times", "echo 1 > a; tar --format=pax --mtime=@0 -cf out a", CLOCK),
    kind("tar-owner", f"echo 1 > a; chmod 644 a; {OLD} a; tar cf out a", USER, held=True),
    kind("tar-mode", f"echo 1 > a; {OLD} a; tar --owner=0 --group=0 -cf out a", MASK, held=True),
    kind("tar-order", "tar cf out --mtime=@0 --owner=0 --group=0 src", ORDER),
    kind(
        "zip-order",
        python("import os,zipfile; z=zipfile.ZipFile('out','w'); [z.write('src/'+n) for n in os.listdir('src')]"),
        ORDER,
    ),
    kind("zip-extended-times", "echo 1 > a; TZ=UTC zip -q out.zip a; mv out.zip out", CLOCK, tools="zip"),
    kind(
        "zip-local-times",
        f"echo 1 > a; chmod 644 a; {OLD} a; " + python("import zipfile; zipfile.ZipFile('out','w').write('a')"),
        {"time zone"},
        held=True,
    ),
    kind("ar-owner", f"echo 1 > a; chmod 644 a; {OLD} a; ar rcU out a", USER, held=True, tools="ar"),
    kind("gzip-temporary-name", f"f=$(mktemp); {OLD} $f; gzip $f; mv $f.gz out", BOTH),
    kind(
        "jar-manifest",
        python(
            "import time,zipfile; z=zipfile.ZipFile('out','w'); z.writestr(zipfile.ZipInfo('META-INF/MANIFEST.MF'),time.strftime('Build-Date: %F %T'))"
        ),
        CLOCK,
    ),
    kind("package", "mkdir -p d/DEBIAN; chmod 755 d d/DEBIAN; printf 'Package: a\\nVersion: 1\\nArchitecture: all\\nMaintainer: a <a@b>\\nDescription: a\\n' > d/DEBIAN/control; " + NO_EPOCH + "dpkg-deb -b d out > log", CLOCK, tools="dpkg-deb"),
    kind("file-system-image", "truncate -s 256K out; /usr/sbin/mke2fs -q out", CLOCK | RANDOM, tools="/usr/sbin/mke2fs"),
    kind("nested-archive", f"mkdir d; echo 1 > d/a; tar czf t d; {OLD} t; tar --owner=0 --group=0 --mode=644 -cf out t", CLOCK),
]  # fmt: skip

TOOLS = [
    kind("diff-header", "echo 1 > a; echo 2 > b; diff -u a b > out || true", CLOCK),
    kind("long-listing", "echo 1 > a; ls -l --full-time a > out", CLOCK),
    kind(
        "commit",
        "git init -q g; cd g; echo 1 > a; git add a; git -c user.name=a -c user.email=a@b commit -qm a; git rev-parse HEAD > ../out; cd ..",
        CLOCK,
        tools="git",
    ),
    kind(
        "tree-archive",
        "git init -q g; cd g; echo 1 > a; git add a; git archive $(git write-tree) > ../out; cd ..",
        CLOCK,
        tools="git",
    ),
    kind("manual-page", "printf '=head1 NAME\\n\\na - b\\n' > a.pod; " + NO_EPOCH + "pod2man < a.pod > out", CLOCK, tools="pod2man"),
    kind("perl-hash", "perl -e '%h = map {$_ => 1} 1..50; print join \",\", keys %h' > out", RANDOM, tools="perl"),
    kind("perl-random", "perl -e 'print rand' > out", RANDOM, tools="perl"),
    kind("awk-seed", "awk 'BEGIN { srand(); print rand() }' > out", BOTH),
    kind("random-sort", "seq 50 | sort -R > out", RANDOM | {"order"}),
    kind("shell-kernel-random", "echo $SRANDOM > out", RANDOM),
    kind("salted-encryption", "echo 1 | openssl enc -aes-128-cbc -pbkdf2 -k x > out", RANDOM, tools="openssl"),
    kind("certificate", "openssl req -x509 -newkey ed25519 -nodes -subj /CN=x -keyout k -out out 2> log", BOTH, tools="openssl"),
    kind("link-map", C + "echo 'int g(void){return 2;}' > y.c; gcc -shared -Wl,-Map=out x.c y.c -o l", BOTH, tools="gcc"),
    kind(
        "profile-guided",
        "{ echo '#include <time.h>'; echo 'int main(void){struct timespec t;clock_gettime(0,&t);int k=t.tv_nsec>>10&7,s=t.tv_sec;';"
        " for j in $(seq 0 7); do echo \"if(k==$j)for(int i=0;i<s%9999+999;i++)s=s*7+i;\"; done; echo 'return s==1;}'; } > x.c; "
        "gcc -O2 -fprofile-generate -c x.c -o x.o; gcc -fprofile-generate x.o -o t; ./t; gcc -O2 -fprofile-use -c x.c -o x.o; mv x.o out",
        CLOCK,
        tools="gcc",
    ),
    kind("library-seed", "printf '#include <stdio.h>\\n#include <stdlib.h>\\n#include <time.h>\\nint main(void){srand(time(0));printf(\"%%d\",rand());}\\n' > x.c; gcc x.c -o x; ./x > out", CLOCK, tools="gcc"),
    kind("static-clock", "printf '#include <stdio.h>\\n#include <time.h>\\nint main(void){printf(\"built at %%ld\\\\n\",(long)time(0));}\\n' > x.c; gcc -static x.c -o x; ./x > out", CLOCK, tools="gcc"),
    kind("parallel-make", "{ echo 'all:'; for i in $(seq 30); do printf 'all: t%s\\nt%s:\\n\\t@echo %s >> log\\n' $i $i $i; done; } > m; make -s -j8 -f m; mv log out", PARALLEL | RANDOM | CLOCK | UNKNOWN, tools="make"),
    kind("node-random", "node -e 'console.log(Math.random())' > out", RANDOM, tools="node"),
    kind("bundle-banner", "node -e 'console.log(\"/*! \" + new Date().toISOString() + \" */\")' > out", CLOCK, tools="node"),
]  # fmt: skip

FORMATS = [
    kind("database-default", python("import sqlite3; c=sqlite3.connect('out'); c.execute('create table t(a default current_timestamp,b)'); c.execute('insert into t(b) values(1)'); c.commit()"), CLOCK),
    kind("database-random", python("import sqlite3; c=sqlite3.connect('out'); c.execute('create table t(a)'); c.execute('insert into t values(randomblob(9))'); c.commit()"), RANDOM),
    kind("picture-time", python("import struct,time,zlib; k=lambda n,b: struct.pack('>I',len(b))+n+b+struct.pack('>I',zlib.crc32(n+b)); t=time.gmtime(); open('out','wb').write(bytes([137])+b'PNG'+bytes([13,10,26,10])+k(b'IHDR',struct.pack('>IIBBBBB',1,1,8,0,0,0,0))+k(b'tIME',struct.pack('>H5B',*t[:6]))+k(b'IDAT',zlib.compress(bytes(2)))+k(b'IEND',b''))"), CLOCK),
    kind("document-id", python("import os; print('trailer << /ID [<'+os.urandom(16).hex()+'>] >>')") + " > out", RANDOM),
    kind("drawing-date", python("import datetime; print('<svg><dc:date>'+datetime.datetime.now().isoformat()+'</dc:date></svg>')") + " > out", CLOCK),
    kind("properties-comment", python("import time; print('#'+time.asctime()); print('a=1')") + " > out", CLOCK),
    kind("layer-created", python("import datetime,json; print(json.dumps({'created':datetime.datetime.utcnow().isoformat()+'Z','os':'linux'}))") + " > out", CLOCK),
    kind("json-set", python("import json; print(json.dumps({'a':list({str(i) for i in range(20)})}))", "-I") + " > out", RANDOM),
    kind("template-date", "echo \"POT-Creation-Date: $(date '+%F %H:%M%z')\" > out", CLOCK),
    kind("page-footer", "echo \"<p>Generated on $(date -R) by make</p>\" > out", CLOCK),
]  # fmt: skip

FACTS = [
    kind("kernel-release", "uname -r > out", HOST),
    kind("kernel-version", "cat /proc/version > out", HOST),
    kind("processor-model", "grep -m 1 -E 'model name|CPU part|processor' /proc/cpuinfo > out; cat /proc/cpuinfo >> out", HOST),
    kind("memory-size", "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo > out", HOST),
    kind("free-memory", "cat /proc/meminfo > out", HOST),
    kind("disk-free", "df -k . > out", HOST),
    kind("uptime", "cat /proc/uptime > out", HOST),
    kind("load-average", "cat /proc/loadavg > out", HOST | UNKNOWN),
    kind("boot-id", "cat /proc/sys/kernel/random/boot_id > out", HOST),
    kind("kernel-uuid", "cat /proc/sys/kernel/random/uuid > out", RANDOM),
    kind("start-time", "cut -d ' ' -f 22 /proc/self/stat > out", UNKNOWN),
    kind("network-port", python("import socket; s=socket.socket(); s.bind(('127.0.0.1',0)); print(s.getsockname()[1])") + " > out", UNKNOWN),
    kind("change-time", "stat -c %Z src/a.o > out", CLOCK),
    kind("inode-number", "ls -i src > out", {"inode numbers"}),
    kind("processor-count", "nproc > out", CPUS),
    kind("configured-processors", "getconf _NPROCESSORS_ONLN > out", CPUS),
    kind("partition-by-processors", "seq 999 > s; split -n l/$(($(nproc) * 2)) s p; wc -l p* > out", CPUS),
    kind("float-reduction", python("import os; n=len(os.sched_getaffinity(0)); v=[1/(i+3) for i in range(99999)]; print(repr(sum(sum(v[i::n]) for i in range(n))))") + " > out", CPUS),
    kind("process-id", "echo $$ > out", {"process ids"}, held=True),
    kind("seed-by-process", python("import os,random; random.seed(os.getpid()); print(random.random())") + " > out", {"process ids"}, held=True),
    kind("hash-seed", python("print(hash('a'))") + " > out", {"hash seed"}, held=True),
    kind("default-repr", python("print(object())") + " > out", ADDRESSES),
    kind("order-by-address", python("print([type(x).__name__ for x in {object(),Exception(),int,print,dict,open,len}], [hash(object()) for _ in range(3)])") + " > out", ADDRESSES),
    kind("pointer-print", "printf '#include <stdio.h>\\nint main(int n,char**v){printf(\"%%p\",(void*)v);}\\n' > x.c; gcc x.c -o x; ./x > out", ADDRESSES, tools="gcc"),
    kind("uninitialised-memory", "printf '#include <stdio.h>\\n#include <stdlib.h>\\nint main(void){char*a=malloc(40000);malloc(9);free(a);char*p=malloc(40000);fwrite(p,1,16,stdout);}\\n' > x.c; gcc -O0 -w x.c -o x; ./x > out", ADDRESSES, tools="gcc"),
]  # fmt: skip

SURROUNDINGS = [
    kind("environment-dump", "env | sort > out", {"environment"}, held=True),
    kind("home-path", "echo $HOME/.config > out", USER, held=True),
    kind("owner-listing", "echo 1 > a; stat -c '%u:%g' a > out", USER, held=True),
    kind("mode-listing", "echo 1 > a; stat -c %a a > out", MASK, held=True),
    kind("zone-of-a-date", "date -d @86400 > out", {"time zone"}, held=True),
    kind("zone-offset", python("import time; print(time.localtime(0).tm_gmtoff)") + " > out", {"time zone"}, held=True),
    kind("locale-width", "printf 'h\\303\\251' | wc -m > out", {"locale"}, held=True),
    kind("locale-name", python("import locale; print(locale.setlocale(locale.LC_ALL,''))") + " > out", {"locale"}, held=True),
    kind("run-path", C + "gcc -shared -Wl,-rpath,$PWD/lib x.c -o out", PATH, held=True, tools="gcc"),
    kind("dependency-file", C + "gcc -MMD -MF out -c $PWD/x.c -o x.o", PATH, held=True, tools="gcc"),
    kind("compile-commands", "echo '[{\"directory\": \"'$PWD'\", \"file\": \"x.c\"}]' > out", PATH, held=True),
    kind("compiled-path", "echo 'x=1' > m.py; python3 -m compileall -q -b --invalidation-mode unchecked-hash $PWD/m.py; mv m.pyc out", PATH, held=True),
    kind("script-interpreter", "printf '#!%s/bin/python\\n' $PWD > out", PATH, held=True),
    kind("host-in-banner", "printf 'built on %s\\n' $(hostname) > out", {"hostname"}, held=True),
]  # fmt: skip

RACES = [
    kind("xargs-race", "seq 60 | xargs -P 8 -n 1 sh -c 'echo $0' > out", PARALLEL | RANDOM | CLOCK | UNKNOWN),
    kind("pool-order", python("import concurrent.futures as c; p=c.ThreadPoolExecutor(8); print([f.result() for f in c.as_completed([p.submit(lambda i=i:(sum(range(9999*(i%7))),i)[1]) for i in range(60)])])") + " > out", PARALLEL | RANDOM | CLOCK | UNKNOWN),
]  # fmt: skip

LISTINGS = [
    kind("glob-order", python("import glob; print(glob.glob('src/*'))") + " > out", ORDER),
    kind("unsorted-listing", "ls -U src > out", ORDER),
    kind("first-found", "find src -name '*.o' | head -n 1 > out", ORDER),
    kind("checksums-as-found", "find src -type f -exec cksum {} + > out", ORDER),
]  # fmt: skip

BOMBS = [
    kind("expired-certificate", "if [ $(date +%s) -lt EXPIRY ]; then echo valid; else echo expired; fi > out", CLOCK),
]
"""`EXPIRY` is filled in as a moment some months ahead: nothing differs until then."""

MORE: list[Kind] = [*ARCHIVES, *TOOLS, *FORMATS, *FACTS, *SURROUNDINGS, *RACES, *LISTINGS, *BOMBS]


STEADY_TOO = [
    kind("cxx", C + "g++ -O2 -c x.c -o out", set(), tools="g++"),
    kind("linked", "printf 'int main(void){return 0;}\\n' > x.c; gcc x.c -o out", set(), tools="gcc"),
    kind("prefix-mapped", C + "gcc -g -ffile-prefix-map=$PWD=. -c x.c -o out", set(), tools="gcc"),
    kind("date-macro-with-epoch", "printf 'char*t=__DATE__ __TIME__;\\n' > x.c; gcc -c x.c -o out", set(), tools="gcc"),
    kind("ar-deterministic", "echo 1 > a; ar rcD out a", set(), tools="ar"),
    kind("tar-of-an-input", "tar --owner=0 --group=0 --mode=644 -cf out src/a.o", set()),
    kind("xz", "seq 99 | xz > out", set(), tools="xz"),
    kind("zstd", "seq 99 | zstd -q > out", set(), tools="zstd"),
    kind("pyc-by-hash", "echo 'x=1' > m.py; python3 -m compileall -q -b --invalidation-mode unchecked-hash m.py; mv m.pyc out", set()),
    kind("database", python("import sqlite3; c=sqlite3.connect('out'); c.execute('create table t(a)'); c.execute('insert into t values(1)'); c.commit()"), set()),
    kind("zip-dated", f"echo 1 > a; chmod 644 a; TZ=UTC {OLD} a; TZ=UTC zip -qX out.zip a; mv out.zip out", set(), tools="zip"),
    kind("package-with-epoch", "mkdir -p d/DEBIAN; chmod 755 d d/DEBIAN; printf 'Package: a\\nVersion: 1\\nArchitecture: all\\nMaintainer: a <a@b>\\nDescription: a\\n' > d/DEBIAN/control; dpkg-deb --root-owner-group -b d out > log", set(), tools="dpkg-deb"),
    kind("manual-page-with-epoch", "printf '=head1 NAME\\n\\na - b\\n' > a.pod; pod2man a.pod > out", set(), tools="pod2man"),
    kind("perl-seeded", "PERL_HASH_SEED=0 perl -e '%h = map {$_ => 1} 1..50; print join \",\", keys %h' > out", set(), tools="perl"),
    kind("python-seeded", python("import random; r=random.Random(7); print([r.random() for _ in range(9)])") + " > out", set()),
    kind("awk-unseeded-sum", "seq 99 | awk '{ s += 1 / $1 } END { print s }' > out", set()),
    kind("tree-id", "git init -q g; cd g; echo 1 > a; git add a; git write-tree > ../out; cd ..", set(), tools="git"),
    kind("key-by-name", "openssl enc -aes-128-cbc -pbkdf2 -nosalt -k x < src/a.o > out", set(), tools="openssl"),
    kind("bundle", "node -e 'console.log(JSON.stringify(Object.keys({b: 1, a: 2}).sort()))' > out", set(), tools="node"),
    kind("make-in-order", "printf 'all: a b\\na b:\\n\\t@echo $@ >> log\\n' > m; make -s -f m; mv log out", set(), tools="make"),
    kind("found-and-sorted", "find src -type f | LC_ALL=C sort | xargs cksum > out", set()),
]  # fmt: skip
"""Their cured twins, of which nothing may be said: an accusation that is wrong costs more than one that is missed."""
