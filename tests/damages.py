"""Damaged copies of files and folders: every value of their JSON replaced, sizes that nothing can hold, pipes and links.

`of_folder(folder, into)` yields `(name, damaged copy)`; the copy is in `into`, and is whole again when the next is asked for.
"""

import copy
import io
import json
import os
import pathlib
import shutil
import struct
import zipfile

import msgpack
import numpy as np

VALUES = (
    None,
    "x",
    "",
    3,
    -1,
    0.5,
    2**45,
    2**70,
    1e308,
    float("nan"),
    True,
    [],
    [1],
    [[1]],
    {},
    {"a": 1},
    "\ud800",
    "\0",
)
SIZES = (-1, 0, 2**31, 2**45, 2**62, 2**64, True, "4", None, 1.5)


def of_folder(folder, into, alike=2, share=1.0, seed=0):
    """Yields `(name, folder)` for each damage to each file of a folder.

    Args:
      folder: the folder.
      into: a folder that does not exist; the damaged copy.
      alike: how many of the members of one list or large object are damaged, the first ones; None means all.
      share: the share of the damages that is tried, drawn at random with `seed`.
    """
    shutil.copytree(folder, into, copy_function=shutil.copyfile)
    into, rng = pathlib.Path(into), np.random.default_rng(seed)
    for file in sorted(path for path in into.rglob("*") if path.is_file()):
        content = file.read_bytes()
        for name, damage in of_file(file, alike):
            if rng.random() >= share:
                continue
            damage()
            yield f"{file.relative_to(into)}: {name}", into
            _remove(file)
            file.write_bytes(content)


def of_file(file, alike=2):
    """Yields `(name, function)` for each damage to a file, which the function does in its place."""
    content = file.read_bytes()
    for name, changed in (*of_bytes(content), *_of_kind(file, content, alike)):
        if changed != content:
            yield name, lambda changed=changed: file.write_bytes(changed)
    yield "missing", file.unlink
    yield "a folder", lambda: (file.unlink(), file.mkdir())
    yield "a FIFO", lambda: (file.unlink(), os.mkfifo(file))
    yield "a device", lambda: (file.unlink(), file.symlink_to("/dev/zero"))
    yield "a link to itself", lambda: (file.unlink(), file.symlink_to(file.name))
    yield "a link to nothing", lambda: (file.unlink(), file.symlink_to("nothing"))


def of_bytes(content):
    """Yields `(name, bytes)`: empty, cut, flipped, other bytes."""
    rng = np.random.default_rng(0)
    yield "empty", b""
    for share in (0.1, 0.5, 0.9):
        yield f"cut at {share}", content[: int(share * len(content))]
    yield "cut by one", content[:-1]
    yield "binary", rng.bytes(200)
    yield "zeros", bytes(len(content))
    yield "twice", content * 2
    for _ in range(4):
        at, bit = rng.integers(max(1, len(content))), rng.integers(8)
        flipped = bytearray(content or b"\0")
        flipped[at] ^= 1 << bit
        yield f"bit {bit} of byte {at}", bytes(flipped)


def of_json(value, alike=2):
    """Yields `(name, value)`: each part of a JSON value replaced, removed, added to, nested deeper; the whole replaced too."""
    for number, other in enumerate(VALUES):
        yield f"is {str(other)[:20]!r} ({number})", other
    for place in _places(value, alike):
        for other in (*VALUES, *_near(_at(value, place))):
            yield f"{_name(place)} = {str(other)[:40]!r} ({type(other).__name__})", _with(value, place, other)
        yield f"{_name(place)} removed", _with(value, place)
        yield f"{_name(place)} nested", _with(value, place, {"x": [_at(value, place)]})
        if isinstance(_at(value, place), dict):
            yield f"{_name(place)} with a key more", _with(value, (*place, "another"), 1)
    if isinstance(value, dict):
        yield "a key more", value | {"another": 1}


def of_safetensors(content, alike=2):
    """Yields `(name, bytes)`: damage to the header, with the values as they were."""
    length = struct.unpack("<Q", content[:8])[0]
    header, values = json.loads(content[8 : 8 + length]), content[8 + length :]
    for number in (0, 1, length - 1, length + 1, 2**31, 2**45, 2**63, 2**64 - 1):
        yield f"a header of {number} bytes", struct.pack("<Q", number) + content[8:]
    for name, changed in of_json(header, alike):
        text = _text(changed).encode()
        yield f"header: {name}", struct.pack("<Q", len(text)) + text + values


def of_msgpack(content, alike=2):
    """Yields `(name, bytes)`: damage to a msgpack file, whose arrays are kept as they are."""
    keep = lambda code, data: msgpack.ExtType(code, data)
    value = msgpack.unpackb(content, ext_hook=keep, strict_map_key=False)
    for name, changed in of_json(value, alike):
        try:
            yield name, msgpack.packb(changed, unicode_errors="surrogatepass")
        except (OverflowError, TypeError, ValueError):  # 2**70
            continue
    for what, bomb in (
        ("list", b"\xdd\xff\xff\xff\xff"),
        ("map", b"\xdf\xff\xff\xff\xff"),
        ("bytes", b"\xc6\xff\xff\xff\xff"),
    ):
        yield f"a {what} of 2**32", bomb
    yield "nested deeply", b"\x91" * 5000 + b"\xc0"
    for name, array in (
        ("shape 2**45", [[2**45, 16], b"float32", b""]), ("negative shape", [[-1, 2], b"float32", b"1234"]),
        ("objects", [[1], b"object", b"12345678"]), ("no dtype", [[1], b"floaty", b"1234"]), ("no bytes", [[1], b"float32", None]),
        ("void", [[1], b"V0", b""]), ("text", [[1], b"U1", b"1234"]), ("many axes", [[1] * 99, b"float32", b"1234"]), ("none", []),
    ):  # fmt: skip
        changed = copy.deepcopy(value)
        changed["optimizer"]["target"] = {"a": msgpack.ExtType(1, msgpack.packb(array))}
        yield f"an array: {name}", msgpack.packb(changed)
    for name, extra in (
        ("complex", msgpack.ExtType(2, b"\x90")),
        ("unknown", msgpack.ExtType(9, b"")),
        ("time", msgpack.Timestamp(0)),
    ):
        yield f"a value: {name}", msgpack.packb(value | {"optimizer": value["optimizer"] | {"target": {"a": extra}}})


def of_npz(content, alike=2):
    """Yields `(name, bytes)`: damage to the headers of the arrays, and archives that unpack to more than they hold."""
    with np.load(io.BytesIO(content)) as archive:
        arrays = dict(archive)
    first = next(iter(arrays))

    def packed(entries, compression=zipfile.ZIP_STORED):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", compression) as archive:
            for name, data in entries.items():
                archive.writestr(f"{name}.npy", data)
        return out.getvalue()

    def npy(header, data=b"1234"):
        text = header.encode().ljust(118) + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data

    def stored(array):
        out = io.BytesIO()
        np.save(out, array)
        return out.getvalue()

    whole = {name: stored(array) for name, array in arrays.items()}
    yield "compressed", packed(whole, zipfile.ZIP_DEFLATED)
    yield "a bomb", packed(whole | {first: bytes(2**26)}, zipfile.ZIP_DEFLATED)
    yield "bzip2", packed(whole | {first: npy("{}")}, zipfile.ZIP_BZIP2)
    for size in SIZES:
        shape = f"({size!r}, 4)"
        yield (
            f"shape {shape}",
            packed(whole | {first: npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}")}),
        )
    for dtype in (
        "'|O'",
        "'|V8'",
        "'<U1'",
        "'<c8'",
        "'x'",
        "3",
        "None",
        "[('a', '<f4')]",
        "'|S1000000000000'",
        "'<M8[s]'",
    ):
        yield (
            f"dtype {dtype}",
            packed(whole | {first: npy(f"{{'descr': {dtype}, 'fortran_order': False, 'shape': (1,), }}")}),
        )
    for header in ("", "[", "{}", "(" * 110, "{'descr': '<f4'}"):
        yield f"header {header[:20]!r}", packed(whole | {first: npy(header)})
    for name, array in list(arrays.items())[:alike]:
        for what, other in (
            ("a number", array.ravel()[:1].reshape(())),
            ("flat", array.ravel()),
            ("no values", array[:0]),
            ("integers", array.astype(np.int64)),
        ):
            yield f"{name} is {what}", packed(whole | {name: stored(other)})
        yield f"{name} removed", packed({other: data for other, data in whole.items() if other != name})
    at = content.find(b"PK\x01\x02")
    for offset, width in (
        (20, "<I"),
        (24, "<I"),
        (42, "<I"),
        (10, "<H"),
        (8, "<H"),
    ):  # sizes, place, compression, flags
        for number in (0, 1, 2**16 - 1, 2**31 if width == "<I" else 99):
            changed = bytearray(content)
            struct.pack_into(width, changed, at + offset, number)
            yield f"field {offset} of the directory is {number}", bytes(changed)


def _of_kind(file, content, alike):
    if file.suffix == ".json" or file.name == ".zarray":
        for name, changed in of_json(json.loads(content), alike):
            yield name, _text(changed).encode(errors="surrogatepass")
        yield "a byte order mark", b"\xef\xbb\xbf" + content
        yield "in UTF-16", content.decode().encode("utf-16")
        yield "nested deeply", b"[" * 100_000
        yield "an object nested deeply", b'{"a":' * 500 + b"1" + b"}" * 500
        yield "a number of 10,000 digits", b'{"a": ' + b"1" * 10_000 + b"}"
    elif file.suffix == ".safetensors":
        yield from of_safetensors(content, alike)
    elif file.suffix == ".npz":
        yield from of_npz(content, alike)
    elif file.name == "checkpoint":
        yield from of_msgpack(content, alike)


def _text(value):
    return json.dumps(value)


def _places(value, alike, place=()):
    """The places of the parts of a JSON value, from the outside in; of a container's members of one kind, `alike`."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    seen = {}
    for key, member in members:
        if isinstance(member, msgpack.ExtType):
            kind = "array"
        else:
            kind = (type(member).__name__, tuple(member) if isinstance(member, dict) else None)
        seen[kind] = seen.get(kind, 0) + 1
        few = isinstance(value, list) or len(value) > 40
        if alike is None or not few or seen[kind] <= alike:
            yield (*place, key)
            if isinstance(member, (dict, list)):
                yield from _places(member, alike, (*place, key))


def _near(value):
    """Values of the same type."""
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return tuple(size for size in (value + 1, -value, 0, 2**31, 2**62) if size != value)
    if isinstance(value, str):
        return (value + "x", value[:-1], f"../{value}", value.swapcase())
    if isinstance(value, list):
        return (value[::-1], value * 2, value * 40)
    return ()


def _at(value, place):
    for step in place:
        value = value[step]
    return value


def _with(value, place, *other):
    """A copy with another part at a place; without `other`, without it."""
    changed = copy.deepcopy(value)
    *above, last = place
    inner = _at(changed, above)
    if other:
        inner[last] = other[0]
    else:
        del inner[last]
    return changed


def _name(place):
    return ".".join(map(str, place))


def _remove(file):
    if file.is_dir() and not file.is_symlink():
        file.rmdir()
    elif file.exists() or file.is_symlink():
        file.unlink()
