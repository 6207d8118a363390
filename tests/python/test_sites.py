"""Call stacks of Python and C++ in one: in order, without a trace in the program."""

TAKE = """
import ctypes, gc, sys, threading, weakref
from gpuledger import _library

core = _library.core()           # calls keep the GIL
waiting = _library.waiting()     # and these give it up

def site(library=core):
    taken = ctypes.c_uint32()
    assert library.gpuledger_take_site(taken) == 0
    return taken.value

def frames(taken):
    text = ctypes.create_string_buffer(1 << 16)
    assert core.gpuledger_site_text(taken, text, len(text), None) == 0
    return text.value.decode().splitlines()

def functions(taken):
    return [line.split(" ")[0] for line in frames(taken)]

core.gpuledger_set_stacks(1, 1)
"""


def test_python_frames_stand_where_the_interpreter_was_entered(fresh_python):
    out = fresh_python(
        TAKE
        + """
libc = ctypes.CDLL(None)
compare_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
seen = []

def innermost():
    seen.append(site())
    return 0

def compare(a, b):
    return innermost()

def sorts():
    numbers = (ctypes.c_int * 2)(2, 1)
    libc.qsort(numbers, 2, ctypes.sizeof(ctypes.c_int), compare_type(compare))

def outermost():
    sorts()

outermost()
names = functions(seen[0])
lines = frames(seen[0])
python = [n for n in names if n in ("site", "innermost", "compare", "sorts", "outermost", "<module>")]
assert python == ["site", "innermost", "compare", "sorts", "outermost", "<module>"], lines
between = [i for i, name in enumerate(names) if name.startswith("qsort")]
assert between and all(names.index("compare") < i < names.index("sorts") for i in between), lines
assert not any("PyEval" in name or "PyObject_Vectorcall" in name for name in names), lines
assert any("ffi_call" in name for name in names), lines
assert lines[names.index("innermost")].endswith("<string>:28"), lines
print("ok")
"""
    )
    assert out == "ok\n"


def test_a_stack_has_one_id_however_warm_the_interpreter_is(fresh_python):
    out = fresh_python(
        TAKE
        + """
def generator():
    yield site()

def key(_):
    found.append(site())
    return 0

def rounds():
    for _ in range(3000):
        sorted([1], key=key)
        found.extend(generator())

found = []
rounds()
assert len(set(found)) == 2, {frame: functions(frame) for frame in set(found)}
a, b = functions(found[0]), functions(found[1])
assert [n for n in a if n in ("key", "rounds")] == ["key", "rounds"], a
assert [n for n in b if n in ("generator", "rounds")] == ["generator", "rounds"], b

here = [site(),
        site()]
assert here[0] != here[1]
print("ok")
"""
    )
    assert out == "ok\n"


def test_a_thread_that_gave_up_the_gil_has_its_python_frames_and_a_native_thread_has_none(fresh_python):
    out = fresh_python(
        TAKE
        + """
def calls(library):
    return site(library)

for library in (core, waiting):
    names = functions(calls(library))
    assert [n for n in names if n in ("site", "calls", "<module>")] == ["site", "calls", "<module>"], names
in_thread = []
thread = threading.Thread(target=lambda: in_thread.append(calls(waiting)))
thread.start()
thread.join()
names = functions(in_thread[0])
assert names.index("site") < names.index("calls") < names.index("<lambda>"), names
assert "<module>" not in names, names

libc = ctypes.CDLL(None)
taken, native = ctypes.c_uint32(), ctypes.c_ulong()
assert libc.pthread_create(ctypes.byref(native), None, core.gpuledger_take_site, ctypes.byref(taken)) == 0
assert libc.pthread_join(native, None) == 0
assert taken.value and not any("<string>" in line for line in frames(taken.value)), frames(taken.value)

core.gpuledger_set_stacks(0, 1)
assert set(functions(site(waiting))) == {"site", "<module>"}
core.gpuledger_set_stacks(1, 0)
assert "site" not in functions(site(core))
print("ok")
"""
    )
    assert out == "ok\n"


def test_many_threads_without_the_gil_meet_new_code(fresh_python):
    out = fresh_python(
        TAKE
        + """
def work(number):
    for i in range(60):
        scope = {"site": site, "waiting": waiting}
        exec(compile(f"def f{number}_{i}():\\n    return site(waiting)\\ntaken = f{number}_{i}()", f"é{number}_{i}.py", "exec"), scope)
        results[number].append(scope["taken"])

results = [[] for _ in range(6)]
threads = [threading.Thread(target=work, args=[n]) for n in range(6)]
for t in threads: t.start()
for t in threads: t.join()
for n, taken in enumerate(results):
    for i, one in enumerate(taken):
        assert f"f{n}_{i} é{n}_{i}.py:2" in frames(one), frames(one)
print("ok")
"""
    )
    assert out == "ok\n"


def test_taking_stacks_makes_no_frame_objects_and_keeps_nothing_alive(fresh_python):
    out = fresh_python(
        TAKE
        + """
class Local:
    pass

def holds():
    local = Local()
    inner()
    return weakref.ref(local)

def inner():
    for _ in range(100):
        core.gpuledger_take_site(taken)

taken = ctypes.c_uint32()
holds()                          # the stack is known now
gc.collect()
gc.disable()
count, blocks = gc.get_count(), sys.getallocatedblocks()
reference = holds()
assert reference() is None
assert sys.getallocatedblocks() - blocks < 20, sys.getallocatedblocks() - blocks

# Nor is an exception that is on its way disturbed by the naming of a new code object.
def raises():
    try:
        raise KeyError("mine")
    except KeyError:
        exec("core.gpuledger_take_site(taken)")
        raise
try:
    raises()
except KeyError as error:
    assert error.args == ("mine",)
assert frames(taken.value)
print("ok")
"""
    )
    assert out == "ok\n"


def test_code_that_is_gone_is_still_named(fresh_python):
    out = fresh_python(
        TAKE
        + """
taken = []
for i in range(50):              # each code object might take the place of the one before
    scope = {"site": site, "taken": taken}
    exec(compile(f"def made_{i}():\\n    taken.append(site())\\nmade_{i}()", f"made_{i}.py", "exec"), scope)
    del scope
    gc.collect()
assert len(set(taken)) == 50
for i, one in enumerate(taken):
    assert f"made_{i} made_{i}.py:2" in frames(one), frames(one)
print("ok")
"""
    )
    assert out == "ok\n"


def test_stacks_are_asked_for_by_the_environment(fresh_python):
    script = """
import ctypes
from gpuledger import _library
core = _library.core()
allocator, address = ctypes.c_void_p(), ctypes.c_uint64()
assert core.gpuledger_create(b"fake", ctypes.c_uint64(0), ctypes.byref(allocator)) == 0, core.gpuledger_last_error()
print("ok")
"""
    for kind in ("none", "native", "python", "all"):
        assert fresh_python(script, GPULEDGER_STACKS=kind) == "ok\n"
    refused = script.replace("== 0, core.gpuledger_last_error()", "!= 0").replace('"ok"', "core.gpuledger_last_error().decode()")
    assert "GPULEDGER_STACKS: 'some' is no kind of stacks" in fresh_python(refused, GPULEDGER_STACKS="some")
