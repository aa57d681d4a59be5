"""Runs a program with what directives of a systemd unit would take from it:
confined.py [--families LIST] [--calls WORD...] [--mdwe] -- PROGRAM...

--families: RestrictAddressFamilies=, names as in LIST `unix,inet`; --calls: SystemCallFilter=, as
`systemd-analyze syscall-filter` knows its sets (a word with ~ takes out); a forbidden call kills.
--mdwe: MemoryDenyWriteExecute=. Exit code 77: systemd-analyze is not here.
"""

import argparse
import ctypes
import errno
import os
import shutil
import socket
import subprocess

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
EQUAL = 4


class Argument(ctypes.Structure):
    _fields_ = [
        ("number", ctypes.c_uint),
        ("compare", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("mask", ctypes.c_uint64),
    ]


seccomp = ctypes.CDLL("libseccomp.so.2")
seccomp.seccomp_init.restype = ctypes.c_void_p
seccomp.seccomp_load.argtypes = [ctypes.c_void_p]
seccomp.seccomp_rule_add_array.argtypes = [
    ctypes.c_void_p,
    ctypes.c_uint32,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.POINTER(Argument),
]


def number(name):
    return seccomp.seccomp_syscall_resolve_name(name.encode())


def begin(otherwise):
    return seccomp.seccomp_init(ctypes.c_uint32(otherwise))


def add(rules, action, call, *arguments):
    array = (Argument * max(1, len(arguments)))(*arguments)
    if seccomp.seccomp_rule_add_array(rules, action, call, len(arguments), array) != 0:
        raise OSError(f"no rule for call {call}")


def load(rules):
    if seccomp.seccomp_load(rules) != 0:
        raise OSError("the rules were not taken")


def members(name):
    """The calls of a set, and of the sets in it."""
    if not name.startswith("@"):
        return {name}
    asked = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", name],
        capture_output=True, text=True, check=True,
    )
    words = [line.strip() for line in asked.stdout.splitlines()[1:]]
    found = set()
    for word in words:
        if word and not word.startswith("#"):
            found |= members(word)
    return found


def allow_families(names):
    allowed = {getattr(socket, f"AF_{name.upper()}") for name in names.split(",")}
    rules = begin(ALLOW)
    for family in set(range(64)) - allowed:
        add(rules, ERRNO | errno.EAFNOSUPPORT, number("socket"), Argument(0, EQUAL, family, 0))
    load(rules)


def allow_calls(words):
    allowed = members("@default")
    for word in words:
        if word.startswith("~"):
            allowed -= members(word[1:]) - members("@default")
        else:
            allowed |= members(word)
    rules = begin(KILL)
    for call in {number(name) for name in allowed}:
        if call >= 0:
            add(rules, ALLOW, call)
    load(rules)


parser = argparse.ArgumentParser()
parser.add_argument("--families")
parser.add_argument("--calls", nargs="*")
parser.add_argument("--mdwe", action="store_true")
parser.add_argument("program", nargs="+")
given = parser.parse_args()
if given.calls and not shutil.which("systemd-analyze"):
    raise SystemExit(77)
if given.mdwe and ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) != 0:
    raise OSError("PR_SET_MDWE")
if given.families:
    allow_families(given.families)
if given.calls:
    allow_calls(given.calls)
os.execvp(given.program[0], given.program)
